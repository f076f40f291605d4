"""What the migrations build and leave behind, read from the catalog of a real server."""

from __future__ import annotations

import re
import subprocess

import psycopg
import pytest

from tests.clusters import Cluster, run
from tests.integration.conftest import MIGRATIONS
from tests.integration.rows import Session, rows

TABLES = [
    "activities",
    "agent_tools",
    "agents",
    "evaluations",
    "feedback",
    "memories",
    "metrics",
    "sessions",
    "tools",
]
VIEWS = ["agent_stats", "recent_feedback_summary"]
UPS, DOWNS = sorted(MIGRATIONS.glob("*.up.sql")), sorted(MIGRATIONS.glob("*.down.sql"), reverse=True)

# Everything in schema public, and every comment on it, that does not belong to an extension.
CATALOG = """
SELECT 'relation', relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION ALL SELECT 'function', proname::text FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace
    AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
UNION ALL SELECT 'type', typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
UNION ALL SELECT 'trigger', tgname::text FROM pg_trigger
UNION ALL SELECT 'constraint', conname::text FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'toast', count(*)::text FROM pg_class WHERE relkind = 't'
UNION ALL SELECT 'comment', count(*)::text FROM pg_description
UNION ALL SELECT 'default privilege', defaclacl::text FROM pg_default_acl
ORDER BY 1, 2
"""


def column(connection: Session, sql: str) -> list[object]:
    return [row[0] for row in rows(connection, sql)]


def dump(cluster: Cluster, database: str) -> str:
    """The schema as pg_dump writes it, without comments, empty lines and the random key of \\restrict."""
    place = ("-h", cluster.host, "-p", str(cluster.port), "-U", "postgres")
    text = run(cluster.bin / "pg_dump", *place, "--schema-only", database)
    return "\n".join(line for line in text.splitlines() if line and not re.match(r"--|\\(un)?restrict", line))


def contract_psql(cluster: Cluster, database: str, file: str) -> subprocess.CompletedProcess[str]:
    """Run a file as the contract says: plain psql, which goes on after an error."""
    place = ["-h", cluster.host, "-p", str(cluster.port), "-U", "minion", "-d", database]
    command = [str(cluster.bin / "psql"), "-X", *place, "-f", str(MIGRATIONS / file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_plain_psql_builds_the_nine_tables_and_two_views(cluster: Cluster, database: str) -> None:
    done = contract_psql(cluster, database, "001_initial_schema.up.sql")
    assert done.stderr == ""
    assert cluster.psql(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1", database
    ) == "\n".join(TABLES)
    assert cluster.psql("SELECT viewname FROM pg_views WHERE schemaname = 'public' ORDER BY 1", database) == "\n".join(
        VIEWS
    )


@pytest.mark.parametrize(
    ("present", "missing"),
    [((), '"uuid-ossp", "vector"'), (("vector",), '"uuid-ossp"'), (("uuid-ossp",), '"vector"')],
)
def test_a_missing_extension_is_named_with_its_command_and_nothing_is_left(
    cluster: Cluster, present: tuple[str, ...], missing: str
) -> None:
    cluster.psql("CREATE DATABASE minion_bare OWNER minion")
    try:
        for name in present:
            cluster.psql(f'CREATE EXTENSION "{name}"', "minion_bare")
        before = dump(cluster, "minion_bare")
        done = contract_psql(cluster, "minion_bare", "001_initial_schema.up.sql")
        assert f'ERROR:  extension missing in database "minion_bare": {missing}\n' in done.stderr
        assert "Migrations never make extensions" in done.stderr
        command = """psql -d minion_bare -c 'CREATE EXTENSION "vector"' -c 'CREATE EXTENSION "uuid-ossp"'"""
        assert f"As a superuser: {command}\n" in done.stderr
        assert dump(cluster, "minion_bare") == before
    finally:
        cluster.psql("DROP DATABASE minion_bare")


def test_a_pgvector_without_hnsw_is_refused(cluster: Cluster, database: str) -> None:
    cluster.psql("UPDATE pg_am SET amname = 'another' WHERE amname = 'hnsw'", database)
    done = contract_psql(cluster, database, "001_initial_schema.up.sql")
    assert f'extension "vector" of database "{database}" is too old: it has no HNSW index' in done.stderr
    assert f"psql -d {database} -c 'ALTER EXTENSION vector UPDATE'" in done.stderr
    assert cluster.psql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database) == "0"


def test_each_file_runs_as_one_message_and_down_leaves_nothing(cluster: Cluster, database: str) -> None:
    with psycopg.connect(cluster.url(database, "minion"), autocommit=True) as connection:
        before = rows(connection, CATALOG)
        empty = dump(cluster, database)
        dumps = []
        for _ in range(2):
            for path in UPS:
                connection.execute(path.read_bytes(), prepare=False)
                assert connection.info.transaction_status.name == "IDLE"
            dumps.append(dump(cluster, database))
            for path in DOWNS:
                connection.execute(path.read_bytes(), prepare=False)
                assert connection.info.transaction_status.name == "IDLE"
            assert rows(connection, CATALOG) == before
            assert dump(cluster, database) == empty
    assert dumps[0] == dumps[1]
    assert dumps[0].count("CREATE TABLE") == 9


def test_the_second_pair_goes_back_to_the_first(cluster: Cluster, database: str) -> None:
    cluster.psql(UPS[0].read_text(), database, "minion")
    first = dump(cluster, database)
    cluster.psql(UPS[1].read_text(), database, "minion")
    assert dump(cluster, database) != first
    cluster.psql(DOWNS[0].read_text(), database, "minion")
    assert dump(cluster, database) == first


def test_a_dump_of_the_schema_restores_to_the_same_schema(cluster: Cluster, schema: Session) -> None:
    original = dump(cluster, schema.info.dbname)
    cluster.psql("CREATE DATABASE minion_restored OWNER minion TEMPLATE template0")
    try:
        cluster.psql(original.replace("CREATE SCHEMA public;", ""), "minion_restored")
        assert dump(cluster, "minion_restored") == original
    finally:
        cluster.psql("DROP DATABASE minion_restored")


def test_minion_owns_every_object(schema: Session) -> None:
    owners = rows(
        schema,
        """SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION SELECT pg_get_userbyid(proowner) FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')""",
    )
    assert owners == [("minion",)]


def test_the_public_may_do_nothing_with_the_tables(cluster: Cluster, schema: Session) -> None:
    cluster.psql("CREATE ROLE stranger LOGIN")
    try:
        with psycopg.connect(cluster.url(schema.info.dbname, "stranger"), autocommit=True) as stranger:
            for name in [*TABLES, *VIEWS]:
                for right in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"):
                    asked = stranger.execute("SELECT has_table_privilege(%s, %s)", (name, right)).fetchone()
                    assert asked == (False,), f"{right} on {name}"
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="table sessions"):
                stranger.execute("SELECT cleanup_expired_sessions()")
    finally:
        cluster.psql("DROP ROLE stranger")


def test_everything_has_a_comment(schema: Session) -> None:
    bare = rows(
        schema,
        """SELECT c.relname, a.attname FROM pg_class AS c
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
            AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid, 'pg_class') IS NULL)
        UNION ALL
        SELECT proname, 'function' FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace
            AND obj_description(p.oid, 'pg_proc') IS NULL
            AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')""",
    )
    assert bare == []


def test_an_index_leads_with_each_referencing_column(schema: Session) -> None:
    references = rows(
        schema,
        """SELECT conrelid::regclass::text, attname, EXISTS (
            SELECT FROM pg_index AS i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1] AND i.indisvalid)
        FROM pg_constraint AS c
        INNER JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace ORDER BY 1, 2""",
    )
    assert references == [
        ("activities", "agent_id", True),
        ("activities", "session_id", True),
        ("agent_tools", "agent_id", True),
        ("agent_tools", "tool_id", True),
        ("evaluations", "agent_id", True),
        ("feedback", "activity_id", True),
        ("feedback", "agent_id", True),
        ("feedback", "session_id", True),
        ("memories", "agent_id", True),
        ("memories", "session_id", True),
        ("metrics", "agent_id", True),
        ("sessions", "agent_id", True),
    ]


def test_no_function_can_be_misled_by_a_search_path(schema: Session) -> None:
    functions = rows(
        schema,
        """SELECT proname, coalesce(proconfig::text, ''), prosqlbody IS NOT NULL FROM pg_proc AS p
        WHERE pronamespace = 'public'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e') ORDER BY 1""",
    )
    assert functions == [
        ("cleanup_expired_sessions", "", True),
        ("set_updated_at", '{"search_path=pg_catalog, pg_temp"}', False),
    ]
    schema.execute("INSERT INTO agents (name) VALUES ('one')")
    schema.execute("INSERT INTO sessions (agent_id, expires_at) SELECT id, '2020-01-01' FROM agents")
    schema.execute("CREATE SCHEMA decoy")
    schema.execute("CREATE TABLE decoy.sessions AS TABLE sessions")
    schema.execute("SET search_path = decoy")
    assert rows(schema, "SELECT public.cleanup_expired_sessions()") == [(1,)]
    assert rows(schema, "SELECT count(*) FROM decoy.sessions") == [(1,)]


def test_maintenance_of_the_contract_runs_as_the_owner(schema: Session) -> None:
    for statement in (
        "REINDEX TABLE memories",
        "REINDEX (CONCURRENTLY) TABLE activities",
        "ANALYZE agents",
        "VACUUM sessions",
    ):
        schema.execute(statement.encode())
    assert column(schema, "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid") == []
