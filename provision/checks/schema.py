"""The schema of the migrations: tables, the HNSW index, triggers, extensions, the version table. Read-only.

Nearly each check is a query for deviations, for a database with applied migrations. `extension-files` applies to every
database of the server.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from provision.checks.finding import Severity, psql
from provision.checks.registry import ROWS_SHOWN, Row, Scope, check, query
from provision.database import Connection
from provision.host import plain
from provision.host.verify import EXTENSIONS, TABLES

HNSW = "CREATE INDEX CONCURRENTLY memories_embedding_idx ON memories USING hnsw (embedding vector_cosine_ops)"
_UNCHECKED = b"""
SELECT pg_get_userbyid(t.relowner), format('constraint %s of table %s is not validated', conname, conrelid::regclass),
  format('ALTER TABLE %s VALIDATE CONSTRAINT %I', conrelid::regclass, conname)
FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
WHERE NOT convalidated AND connamespace = 'public'::regnamespace ORDER BY 1, 2
"""
# Only a table: the functions of a view of that name would run with the caller's rights, here the superuser's.
_MIGRATED = "EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.schema_migrations') AND relkind = 'r')"
_NAMES = ", ".join(f"'{name}'" for name in TABLES)
_EXTENSIONS = ", ".join(f"'{name}'" for name in EXTENSIONS)

query(
    "extension-files",
    "SELECT format('extension %s of database %s is %s, its files are %s', e.extname, current_database(), e.extversion,"
    " a.default_version), format('ALTER EXTENSION %I UPDATE', e.extname)"
    " FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname"
    " WHERE a.default_version <> e.extversion UNION ALL"
    " SELECT format('extension %s of database %s has no files on the host', e.extname, current_database()), NULL"
    " FROM pg_extension e WHERE NOT EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = e.extname)",
    area="extensions",
    expected="the same extension version in the database and on disk",
    why="the library and the SQL functions have different versions",
    tags="pgvector,database",
    every_database=True,
)

query(
    "schema-permission",
    "SELECT format('role %s may not %s in schema public', r.rolname, lower(p)),"
    " format('GRANT ALL ON SCHEMA public TO %I', r.rolname)"
    " FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba, unnest(ARRAY['CREATE', 'USAGE']) p"
    " WHERE d.datname = current_database() AND NOT has_schema_privilege(r.oid, 'public', p)",
    area="privileges",
    severity=Severity.CRITICAL,
    expected="CREATE and USAGE on schema public for the database owner",
    why="migrations fail: permission denied for schema public",
    tags="database",
    safe=True,
)

query(
    "extensions-missing",
    "SELECT format('extension %s is missing', w), format('CREATE EXTENSION %I SCHEMA public', w)"
    f" FROM unnest(ARRAY[{_EXTENSIONS}, 'pg_stat_statements']) w WHERE w <> 'vector'"
    " AND EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = w)"
    " AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = w)",
    area="extensions",
    expected="the extensions of the schema and of monitoring",
    why="keys cannot be generated, or query statistics are missing",
    tags="pgvector,database",
    safe=True,
)

query(
    "tables-missing",
    f"SELECT format('table %s is missing', w) FROM unnest(ARRAY[{_NAMES}]) w"
    f" WHERE {_MIGRATED} AND to_regclass('public.' || w) IS NULL",
    area="schema",
    severity=Severity.CRITICAL,
    expected="the nine tables of the schema",
    why="the application fails, and data is lost",
    fix="# see docs/a-table-was-dropped.md",
)


@check(
    "migrations-dirty",
    scope=Scope.DATABASE,
    area="schema",
    severity=Severity.CRITICAL,
    expected="a clean schema version",
    why="no migration is applied until the version is resolved",
    fix="provision migrate status  # with --database; then docs/migration-is-dirty.md",
)
def dirty(session: Connection) -> Iterator[Row]:
    """Report a version marked dirty. The session may be a superuser's, so no code of the table's owner must run."""
    if session.execute(f"SELECT {_MIGRATED}").fetchone() == (True,):
        table = sql.Identifier("public", "schema_migrations")
        for version, is_dirty in plain.values(session, table, ("version", "dirty")):
            if is_dirty == "t":
                yield f"version {version} is dirty"


query(
    "hnsw-missing",
    f"SELECT 'memories.embedding has no HNSW index', '{HNSW}' WHERE to_regclass('public.memories') IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
    " JOIN pg_am a ON a.oid = i.relam WHERE x.indrelid = to_regclass('public.memories')"
    " AND a.amname = 'hnsw' AND x.indpred IS NULL)",
    area="schema",
    severity=Severity.CRITICAL,
    expected="an HNSW index on memories.embedding",
    why="every vector search scans the whole table",
    tags="migrations",
)

query(
    "triggers-disabled",
    "SELECT format('trigger %s of table %s is disabled', t.tgname, t.tgrelid::regclass),"
    " format('ALTER TABLE %s ENABLE TRIGGER %I', t.tgrelid::regclass, t.tgname)"
    " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE t.tgenabled = 'D'"
    " AND c.relnamespace = 'public'::regnamespace",
    area="schema",
    expected="enabled triggers",
    why="updated_at is not maintained, and retention depends on it",
    safe=True,
)


@check(
    "constraints-unchecked",
    scope=Scope.DATABASE,
    area="schema",
    expected="validated constraints",
    why="existing rows may violate the constraint",
)
def unchecked(session: Connection) -> Iterator[Row]:
    """Report constraints of a table's owner in one finding.

    The command logs in as that owner: the functions of a CHECK run with the rights of the session that validates it.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for owner, text, statement in session.execute(_UNCHECKED).fetchall():
        found.setdefault(str(owner), []).append((str(text), str(statement)))
    for owner, rows in found.items():
        more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        fix = psql(session.info.dbname, *(statement for _, statement in rows), user=owner)
        yield "; ".join(text for text, _ in rows[:ROWS_SHOWN]) + more, fix
