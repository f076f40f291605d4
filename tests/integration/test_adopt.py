"""An unrecorded schema is recognised or refused, and every kind of object gets the new owner."""

from __future__ import annotations

import psycopg
import pytest

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
