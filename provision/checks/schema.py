"""The schema of the migrations: tables, the HNSW index, triggers, extensions, the version table. Read-only.

Nearly each check is a query for deviations, for a database with applied migrations. `extension-files` applies to every
database of the server.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from provision.checks.finding import Severity
from provision.checks.registry import Row, Scope, check, query
from provision.database import Connection
from provision.host import plain
from provision.host.verify import EXTENSIONS, TABLES

HNSW = "CREATE INDEX CONCURRENTLY memories_embedding_idx ON memories USING hnsw (embedding vector_cosine_ops)"
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
    fix="docs/a-table-was-dropped.md",
)


@check(
    "migrations-dirty",
    scope=Scope.DATABASE,
    area="schema",
    severity=Severity.CRITICAL,
    expected="a clean schema version",
    why="no migration is applied until the version is resolved",
    fix="provision migrate status, then docs/migration-is-dirty.md",
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
    fix="ALTER TABLE ... ENABLE TRIGGER",
    safe=True,
)

query(
    "constraints-unchecked",
    "SELECT format('constraint %s of table %s is not validated', conname, conrelid::regclass),"
    " format('ALTER TABLE %s VALIDATE CONSTRAINT %I', conrelid::regclass, conname)"
    " FROM pg_constraint WHERE NOT convalidated AND connamespace = 'public'::regnamespace",
    area="schema",
    expected="validated constraints",
    why="existing rows may violate the constraint",
    fix="ALTER TABLE ... VALIDATE CONSTRAINT",
)

query(
    "overridden",
    "SELECT format('%s is set in %s line %s to %s and runs as %s', f.name, f.sourcefile, f.sourceline, f.setting,"
    " current_setting(f.name, true)) FROM pg_file_settings f JOIN pg_settings s ON s.name = lower(f.name)"
    " WHERE f.sourcefile LIKE '%/conf.d/50-provision.conf' AND NOT f.applied AND NOT s.pending_restart"
    " AND EXISTS (SELECT FROM pg_file_settings o WHERE o.name = f.name AND o.applied AND o.setting <> f.setting"
    " AND o.sourcefile NOT LIKE '%.auto.conf' AND o.sourcefile NOT LIKE '%/conf.d/50-provision.conf')",
    area="settings",
    expected="settings from conf.d/50-provision.conf",
    why="a later file overrides the inventory's value",
    fix="remove it from the overriding file (SELECT * FROM pg_file_settings), then {site}",
    tags="postgresql",
)

query(
    "not-read",
    "SELECT format('%s line %s: %s', sourcefile, sourceline, error) FROM pg_file_settings WHERE error IS NOT NULL"
    " AND error <> 'setting could not be applied'",
    area="settings",
    severity=Severity.CRITICAL,
    expected="configuration files without errors",
    why="a reload ignores the file, and a restart fails",
    tags="postgresql",
)
