"""Is what the migrations made still there and in force: tables, the HNSW index, triggers, the version table?

Read-only queries in the form of `hardening.Check`, for a database that the migrations have been applied to.
EXTENSION_FILES is asked of every database of the server.
"""

from __future__ import annotations

from provision.checks.finding import Severity
from provision.checks.hardening import SITE, Check
from provision.host.verify import EXTENSIONS as WANTED
from provision.host.verify import TABLES

HNSW = "CREATE INDEX CONCURRENTLY memories_embedding_idx ON memories USING hnsw (embedding vector_cosine_ops)"
# A table, for a view of that name would run its functions as whoever asks: here that is the superuser.
_MIGRATED = "EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.schema_migrations') AND relkind = 'r')"
_NAMES = ", ".join(f"'{name}'" for name in TABLES)
_EXTENSIONS = ", ".join(f"'{name}'" for name in WANTED)

EXTENSION_FILES = Check(
    "extension-files",
    "extensions",
    "SELECT format('extension %s of database %s is %s, its files are %s', e.extname, current_database(), e.extversion,"
    " a.default_version), format('ALTER EXTENSION %I UPDATE', e.extname)"
    " FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname"
    " WHERE a.default_version <> e.extversion UNION ALL"
    " SELECT format('extension %s of database %s has no files on the host', e.extname, current_database()), NULL"
    " FROM pg_extension e WHERE NOT EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = e.extname)",
    "the same version in the database and on disk",
    "the library runs with functions of another version",
    f"{SITE} --tags pgvector,database",
)

CHECKS = (
    Check(
        "schema-permission",
        "privileges",
        "SELECT format('role %s may not %s in schema public', r.rolname, lower(p)),"
        " format('GRANT ALL ON SCHEMA public TO %I', r.rolname)"
        " FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba, unnest(ARRAY['CREATE', 'USAGE']) p"
        " WHERE d.datname = current_database() AND NOT has_schema_privilege(r.oid, 'public', p)",
        "the owner of the database makes tables in schema public",
        "migrations fail: permission denied for schema public",
        f"{SITE} --tags database",
        Severity.CRITICAL,
        safe=True,
    ),
    Check(
        "extensions-missing",
        "extensions",
        "SELECT format('extension %s is missing', w), format('CREATE EXTENSION %I SCHEMA public', w)"
        f" FROM unnest(ARRAY[{_EXTENSIONS}, 'pg_stat_statements']) w WHERE w <> 'vector'"
        " AND EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = w)"
        " AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = w)",
        "the extensions that the schema and its watchers use",
        "keys are not made, or nobody can tell what is slow",
        f"{SITE} --tags pgvector,database",
        safe=True,
    ),
    Check(
        "tables-missing",
        "schema",
        f"SELECT format('table %s is missing', w) FROM unnest(ARRAY[{_NAMES}]) w"
        f" WHERE {_MIGRATED} AND to_regclass('public.' || w) IS NULL",
        "the nine tables",
        "the application fails, and rows are gone",
        "docs/a-table-was-dropped.md",
        Severity.CRITICAL,
    ),
    Check(
        "migrations-dirty",
        "schema",
        "SELECT format('version %s is dirty', v) FROM unnest(xpath('//row[dirty=\"true\"]/version/text()', "
        f" query_to_xml(CASE WHEN {_MIGRATED} THEN 'SELECT version, dirty FROM public.schema_migrations'"
        " ELSE 'SELECT 1 WHERE false' END,"
        " false, false, ''))) v",
        "a version that ended well",
        "nothing more is applied until somebody has looked",
        "provision migrate status, then docs/migration-is-dirty.md",
        Severity.CRITICAL,
    ),
    Check(
        "hnsw-missing",
        "schema",
        f"SELECT 'memories.embedding has no HNSW index', '{HNSW}' WHERE to_regclass('public.memories') IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
        " JOIN pg_am a ON a.oid = i.relam WHERE x.indrelid = to_regclass('public.memories')"
        " AND a.amname = 'hnsw' AND x.indpred IS NULL)",
        "an HNSW index on memories.embedding",
        "every search reads the whole table",
        f"{SITE} --tags migrations",
        Severity.CRITICAL,
    ),
    Check(
        "triggers-disabled",
        "schema",
        "SELECT format('trigger %s of table %s is disabled', t.tgname, t.tgrelid::regclass),"
        " format('ALTER TABLE %s ENABLE TRIGGER %I', t.tgrelid::regclass, t.tgname)"
        " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE t.tgenabled = 'D'"
        " AND c.relnamespace = 'public'::regnamespace",
        "triggers that fire",
        "updated_at stands still, and retention counts from it",
        "ALTER TABLE ... ENABLE TRIGGER",
        safe=True,
    ),
    Check(
        "constraints-unchecked",
        "schema",
        "SELECT format('constraint %s of table %s is not validated', conname, conrelid::regclass),"
        " format('ALTER TABLE %s VALIDATE CONSTRAINT %I', conrelid::regclass, conname)"
        " FROM pg_constraint WHERE NOT convalidated AND connamespace = 'public'::regnamespace",
        "constraints that hold for every row",
        "the planner and the application believe what is not so",
        "ALTER TABLE ... VALIDATE CONSTRAINT",
    ),
    Check(
        "overridden",
        "settings",
        "SELECT format('%s is set in %s line %s to %s and runs as %s', f.name, f.sourcefile, f.sourceline, f.setting,"
        " current_setting(f.name, true)) FROM pg_file_settings f JOIN pg_settings s ON s.name = lower(f.name)"
        " WHERE f.sourcefile LIKE '%/conf.d/50-provision.conf' AND NOT f.applied AND NOT s.pending_restart"
        " AND EXISTS (SELECT FROM pg_file_settings o WHERE o.name = f.name AND o.applied"
        " AND o.sourcefile NOT LIKE '%.auto.conf' AND o.sourcefile NOT LIKE '%/conf.d/50-provision.conf')",
        "settings from our own file",
        "a later file wins over what inventories say",
        f"remove it from the file that wins (SELECT * FROM pg_file_settings), then {SITE} --tags postgresql",
    ),
    Check(
        "not-read",
        "settings",
        "SELECT format('%s line %s: %s', sourcefile, sourceline, error) FROM pg_file_settings WHERE error IS NOT NULL"
        " AND error <> 'setting could not be applied'",
        "settings that the server can read",
        "a reload takes none of the file, and the server does not start again",
        f"{SITE} --tags postgresql",
        Severity.CRITICAL,
    ),
)
