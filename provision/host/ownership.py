"""Transfer every object of a schema to one role: of public for a database that is adopted, or of a tenant's schema.

Changes the database.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from provision.database import Connection, connect_pinned, identifier
from provision.errors import DatabaseError
from provision.host.access import APPLICATION

OWNED_OBJECTS = (
    # Tables, views and sequences; indexes and owned sequences follow their table.
    "SELECT format('%s %s', CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'"
    " WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, c.oid::regclass), c.relowner"
    " FROM pg_class c WHERE c.relnamespace = {schema}::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
    " AND (d.deptype = 'e' OR c.relkind = 'S' AND d.deptype IN ('a', 'i')))",
    "SELECT format('ROUTINE %s', p.oid::regprocedure), p.proowner FROM pg_proc p"
    " WHERE p.pronamespace = {schema}::regnamespace AND NOT EXISTS (SELECT FROM pg_depend d"
    " WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')",
    "SELECT format('%s %s', CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, t.oid::regtype), t.typowner"
    " FROM pg_type t WHERE t.typnamespace = {schema}::regnamespace AND (t.typtype IN ('d', 'e', 'r')"
    " OR t.typtype = 'c' AND (SELECT c.relkind = 'c' FROM pg_class c WHERE c.oid = t.typrelid))"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid"
    " AND d.deptype = 'e')",
)
"""Objects of a schema that have an owner, except those of extensions: SQL name and owner."""

OWN_LOCK_MS = 10_000  # later sessions queue behind our lock request for as long


def own(url: str, owner: str) -> list[str]:
    """Change the owner of every object in schema public in one transaction, and return the changes.

    Creates the role if it does not exist. Raises DatabaseError.
    """
    name = sql.Identifier(owner)
    changes = []
    try:
        with connect_pinned(url, application=APPLICATION, autocommit=False, lock_timeout_ms=OWN_LOCK_MS) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (owner,)).fetchone():
                connection.execute(sql.SQL("CREATE ROLE {}").format(name))
                changes.append(f"role {owner}")
            changes += _give(connection, "public", owner)
    except psycopg.Error as error:
        raise DatabaseError(
            "cannot change the owner; no object was changed",
            where=owner,
            seen=str(error).strip(),
            run="the same command again; after a lock timeout wait until long transactions have ended",
        ) from None
    return changes


def give(connection: Connection, name: str) -> list[str]:
    """Give a schema and its objects to the role of the same name. Return the changes. Raises psycopg.Error."""
    with connection.transaction():
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{OWN_LOCK_MS}ms",))
        mine = sql.Identifier(name)
        row = connection.execute(
            "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = %s", (name,)
        ).fetchone()
        if row is None:
            return []
        changes = []
        if row[0] != name:
            connection.execute(sql.SQL("ALTER SCHEMA {} OWNER TO {}").format(mine, mine))
            changes.append(f"schema {name}: owner {row[0]} -> {name}")
        return changes + _give(connection, name, name)


def _give(connection: Connection, schema: str, owner: str) -> list[str]:
    name, changes = sql.Identifier(owner), []
    for query in OWNED_OBJECTS:
        rows = connection.execute(
            sql.SQL(
                "SELECT object, owner::regrole::text FROM ({}) o (object, owner)"
                " WHERE owner <> to_regrole(quote_ident({})) ORDER BY 1"
            ).format(sql.SQL(query).format(schema=sql.Literal(identifier(schema))), sql.Literal(owner))
        ).fetchall()
        for what, before in rows:
            statement = f"ALTER {what} OWNER TO ".encode() + name.as_bytes(connection)  # quoted by the server
            connection.execute(statement)
            changes.append(f"{str(what).lower()}: owner {before} -> {owner}")
    return changes
