"""Objects that `drop` leaves in a schema, with the statements that drop them. Does IO.

golang-migrate's drop, like ours, drops tables and what depends on them. Functions, types, sequences and views of their
own stay, and a migration that creates them again then fails. Members of extensions are not listed.
"""

from __future__ import annotations

from provision.database import Connection
from provision.host.migrate.files import Problem, Severity

_OBJECTS = """
SELECT kind, format('%%I.%%I%%s', n.nspname, name, arguments)
FROM (
    SELECT 1 AS turn, CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'SEQUENCE' END AS kind,
        relnamespace AS place, relname AS name, '' AS arguments, 'pg_class'::regclass AS class, oid
    FROM pg_class WHERE relkind IN ('v', 'm', 'S')
    UNION ALL
    SELECT 2, CASE prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END,
        pronamespace, proname, '(' || pg_get_function_identity_arguments(oid) || ')', 'pg_proc'::regclass, oid
    FROM pg_proc
    UNION ALL
    SELECT 3, CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, typnamespace, typname, '', 'pg_type'::regclass, oid
    FROM pg_type WHERE typtype IN ('d', 'e')
        OR typtype = 'c' AND (SELECT relkind FROM pg_class WHERE oid = typrelid) = 'c'
) o JOIN pg_namespace n ON n.oid = o.place
WHERE n.nspname = %s AND NOT EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype IN ('e', 'i', 'a'))
ORDER BY turn, kind, name COLLATE "C", arguments
"""


def statements(connection: Connection, schema: str) -> list[str]:
    """Return a DROP statement for each object that is left in a schema, in an order that works."""
    rows = connection.execute(_OBJECTS.encode(), (schema,)).fetchall()
    return [f"DROP {kind} {name};" for kind, name in rows]


def problem(schema: str, found: list[str]) -> Problem:
    """Describe them in a warning."""
    count = f"{len(found)} objects" if len(found) > 1 else "one object"
    return Problem(
        "leftover",
        f"schema {schema}",
        f"still has {count} besides tables, and a migration that creates them again fails",
        " ".join(found),
        Severity.WARNING,
    )
