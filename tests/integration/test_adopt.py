"""An unrecorded schema is recognised or refused, and every kind of object gets the new owner."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner, Result

from provision.cli.adopt import command
from provision.errors import DatabaseError, MigrationError
from provision.host.migrate.recognise import Recognised, recognise
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from provision.host.ownership import own
from tests.clusters import Cluster
from tests.integration.conftest import MIGRATIONS

FIRST = (MIGRATIONS / "001_initial_schema.up.sql").read_text()
NEWEST = max(int(path.name.split("_")[0]) for path in MIGRATIONS.glob("*.up.sql"))
MADE_BY_POSTGRES = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TYPE pair AS (a int, b int);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE TYPE span AS RANGE (subtype = int);
CREATE TABLE "odd ""name" (id serial PRIMARY KEY, n positive, m mood, big bigint GENERATED ALWAYS AS IDENTITY);
CREATE TABLE parts (id int) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (9);
CREATE VIEW seen AS SELECT id FROM parts;
CREATE MATERIALIZED VIEW kept AS SELECT id FROM parts;
CREATE SEQUENCE alone;
CREATE FUNCTION twice(n int, m text DEFAULT 'x') RETURNS int LANGUAGE sql RETURN n * 2;
CREATE PROCEDURE nothing() LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE total (int) (sfunc = int4pl, stype = int);
"""
OTHERS = """
WITH theirs (kind, name) AS (
    SELECT 'relation', relname FROM pg_class c
    WHERE relnamespace = 'public'::regnamespace AND relowner <> 'minion'::regrole
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    UNION ALL
    SELECT 'routine', proname FROM pg_proc p
    WHERE pronamespace = 'public'::regnamespace AND proowner <> 'minion'::regrole
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype IN ('e', 'i'))
    UNION ALL
    SELECT 'type', typname FROM pg_type t
    WHERE typnamespace = 'public'::regnamespace AND typowner <> 'minion'::regrole
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = t.oid AND d.deptype IN ('e', 'i'))
)
SELECT kind, count(*) FROM theirs GROUP BY kind
"""


def recognised(cluster: Cluster, database: str) -> Recognised:
    settings = Settings(cluster.url(database), MIGRATIONS)
    return recognise(settings, ("vector", "uuid-ossp"), lambda there: Runner(there))


def others(cluster: Cluster, database: str) -> dict[str, int]:
    with psycopg.connect(cluster.url(database)) as connection:
        return dict(connection.execute(OTHERS.encode()).fetchall())


def test_every_kind_of_object_gets_the_owner_and_a_second_call_changes_nothing(cluster: Cluster, database: str) -> None:
    cluster.psql(MADE_BY_POSTGRES, database)
    before = others(cluster, database)
    assert set(before) == {"relation", "routine", "type"}
    assert min(before.values()) > 2
    changes = own(cluster.url(database), "minion")
    assert any('odd ""name' in change for change in changes)
    assert others(cluster, database) == {}
    assert own(cluster.url(database), "minion") == []


def test_objects_of_extensions_stay_with_the_superuser(cluster: Cluster, database: str) -> None:
    assert own(cluster.url(database), "minion") == []
    with psycopg.connect(cluster.url(database)) as connection:
        assert connection.execute("SELECT typowner FROM pg_type WHERE typname = 'vector'").fetchone() == (10,)


def test_no_owner_changes_if_a_table_is_locked(cluster: Cluster, database: str) -> None:
    cluster.psql("CREATE TABLE a (i int); CREATE TABLE b (i int)", database)
    with psycopg.connect(cluster.url(database)) as holder:
        holder.execute("LOCK TABLE b")
        with pytest.raises(DatabaseError, match="cannot change the owner; no object was changed") as refused:
            own(cluster.url(database), "minion")
    assert "lock timeout" in refused.value.seen
    with psycopg.connect(cluster.url(database)) as connection:
        assert connection.execute("SELECT relowner FROM pg_class WHERE relname = 'a'").fetchone() == (10,)


VERSIONS = "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);"
TRAP = """
CREATE FUNCTION trap.attempt() RETURNS void LANGUAGE plpgsql AS $$
BEGIN CREATE ROLE planted SUPERUSER; EXCEPTION WHEN OTHERS THEN NULL; END $$;
CREATE FUNCTION trap.spring() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
  'BEGIN PERFORM trap.attempt(); RETURN true; END';
CREATE FUNCTION trap.fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM trap.spring(); RETURN NULL; END';
CREATE TYPE trap.span AS (n int);
CREATE FUNCTION trap.convert(trap.span) RETURNS interval LANGUAGE plpgsql AS
  $$ BEGIN PERFORM trap.spring(); RETURN '1 s'; END $$;
CREATE CAST (trap.span AS interval) WITH FUNCTION trap.convert AS IMPLICIT;
CREATE FUNCTION trap.format_type(oid, int) RETURNS text LANGUAGE sql AS
  $$ SELECT CASE WHEN trap.spring() THEN pg_catalog.format_type($1, $2) END $$;
CREATE FUNCTION trap.current_schema() RETURNS name LANGUAGE sql AS $$ SELECT 'public'::name WHERE trap.spring() $$;
"""
TRIGGER = (
    "CREATE TRIGGER t AFTER INSERT OR DELETE ON schema_migrations FOR EACH STATEMENT EXECUTE FUNCTION trap.fire();"
    "ALTER TABLE schema_migrations ENABLE ALWAYS TRIGGER t"
)
STORED = """
ALTER DATABASE {0} SET search_path = trap, pg_catalog, public; ALTER DATABASE {0} SET role = minion;
ALTER DATABASE {0} SET statement_timeout = 1; ALTER DATABASE {0} SET default_transaction_read_only = on;
"""


@pytest.fixture
def owned(cluster: Cluster, database: str) -> Iterator[str]:
    """A database at version 1 whose owner has placed code that creates a role where a superuser runs it."""
    cluster.psql(f"CREATE SCHEMA trap AUTHORIZATION minion; ALTER DATABASE {database} OWNER TO minion", database)
    cluster.psql(f"ALTER SCHEMA public OWNER TO minion; {FIRST}", database)
    cluster.psql(TRAP, database, "minion")
    yield database
    cluster.psql("DROP ROLE IF EXISTS planted")


def planted(cluster: Cluster) -> bool:
    return cluster.psql("SELECT count(*) FROM pg_roles WHERE rolname = 'planted'") == "1"


def adopt(cluster: Cluster, database: str) -> Result:
    words = ["--database", cluster.url(database), "--path", str(MIGRATIONS), "--owner", "minion"]
    return CliRunner().invoke(command, words)


def test_the_trap_is_real(cluster: Cluster, owned: str) -> None:
    cluster.psql(f"{VERSIONS} {TRIGGER}", owned, "minion")
    cluster.psql("INSERT INTO schema_migrations VALUES (1, false)", owned)
    assert planted(cluster)


@pytest.mark.parametrize(
    "trap",
    [
        TRIGGER,
        "CREATE RULE r AS ON INSERT TO schema_migrations DO ALSO SELECT trap.spring()",
        "ALTER TABLE schema_migrations ADD CHECK (trap.spring())",
        "CREATE INDEX ON schema_migrations (version) WHERE trap.spring()",
    ],
    ids=["trigger", "rule", "check", "index"],
)
def test_code_on_an_empty_version_table_does_not_run_as_the_superuser(cluster: Cluster, owned: str, trap: str) -> None:
    cluster.psql(f"{VERSIONS} {trap}", owned, "minion")
    done = adopt(cluster, owned)
    assert done.exit_code == 0, done.output
    assert "the schema matches version 1" in done.output
    assert not planted(cluster)
    seen = "SELECT version, dirty, (SELECT count(*) FROM schema_migrations_history WHERE outcome = 'forced')"
    assert cluster.psql(f"{seen} FROM schema_migrations", owned, "minion") == "1|f|1"


def test_settings_stored_by_the_owner_do_not_change_what_the_superuser_runs(cluster: Cluster, owned: str) -> None:
    cluster.psql(VERSIONS, owned, "minion")
    cluster.psql(STORED.format(owned))
    done = adopt(cluster, owned)
    assert done.exit_code == 0, done.output
    assert not planted(cluster)


@pytest.mark.parametrize(
    ("trap", "message"),
    [
        ("CREATE VIEW schema_migrations AS SELECT 1::bigint AS version, trap.spring() AS dirty",
         '"public"."schema_migrations" is not an ordinary table'),
        (f"{VERSIONS} INSERT INTO schema_migrations VALUES (1, false); CREATE TABLE schema_migrations_history AS"
         " SELECT 1::bigint AS id, 1::bigint AS version, ''::text AS name, 'up'::text AS direction,"
         " 'done'::text AS outcome, ''::text AS checksum, now() AS started_at, ROW(1)::trap.span AS duration,"
         " ''::name AS role, ''::text AS runner, ''::text AS detail", "belongs to another tool"),
    ],
    ids=["view", "cast"],
)  # fmt: skip
def test_relations_that_would_run_code_when_read_are_refused(
    cluster: Cluster, owned: str, trap: str, message: str
) -> None:
    cluster.psql(trap, owned, "minion")
    refused = adopt(cluster, owned)
    assert isinstance(refused.exception, DatabaseError)
    assert message in refused.exception.what
    assert not planted(cluster)


def test_an_empty_schema_has_no_version(cluster: Cluster, database: str) -> None:
    found = recognised(cluster, database)
    assert (found.version, found.record) == (-1, False)


def test_first_and_newest_version_are_recognised_with_any_owner(cluster: Cluster, database: str) -> None:
    cluster.psql(FIRST, database)
    assert recognised(cluster, database) == Recognised(1, "the schema matches version 1", record=True)
    for path in sorted(MIGRATIONS.glob("*.up.sql"))[1:]:
        cluster.psql(path.read_text(), database)
    assert recognised(cluster, database).version == NEWEST


def test_version_of_golang_migrate_must_match_the_schema(cluster: Cluster, database: str) -> None:
    table = "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);"
    cluster.psql(f"{FIRST} {table} INSERT INTO schema_migrations VALUES (1, false)", database, "minion")
    assert recognised(cluster, database).record is False
    cluster.psql(f"UPDATE schema_migrations SET version = {NEWEST}", database)
    with pytest.raises(MigrationError, match=f"schema_migrations records version {NEWEST}, but the schema differs"):
        recognised(cluster, database)
    cluster.psql("UPDATE schema_migrations SET dirty = true", database)
    with pytest.raises(MigrationError, match="a migration of this database is unfinished"):
        recognised(cluster, database)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("ALTER TABLE agents ADD COLUMN mood text", "+    mood text"),
        ("DROP INDEX memories_embedding_idx", "-CREATE INDEX memories_embedding_idx"),
        ("ALTER TABLE memories ALTER COLUMN content DROP NOT NULL", "+    content text,"),
        ("CREATE TABLE extra (id int)", "+CREATE TABLE public.extra ("),
    ],
)
def test_different_schema_is_refused_with_the_difference(
    cluster: Cluster, database: str, change: str, line: str
) -> None:
    cluster.psql(f"{FIRST} {change}", database)
    with pytest.raises(MigrationError, match="the schema matches no migration version") as refused:
        recognised(cluster, database)
    assert "difference from the closest version, 1" in refused.value.seen
    assert line in refused.value.seen
    assert "docs/adopt-an-existing-database.md" in refused.value.run
