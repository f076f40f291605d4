"""Metrics of a real server, read by a read-only role: each follows the state that it describes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from provision import system
from provision.checks import drift
from provision.database import connect_pinned
from provision.errors import DatabaseError, ProvisionError
from provision.host.metrics import collect as metrics_of_host
from provision.host.metrics import database
from provision.host.metrics.collect import Collected, collect
from provision.plan import load
from provision.plan.schema import Maintenance, Retention
from tests.clusters import Cluster
from tests.contract.repository import ROOT
from tests.integration.conftest import copy_of
from tests.plans import sample, write

ROLE = "minion_backup"
MAINTENANCE = sample().maintenance


@pytest.fixture
def name(cluster: Cluster, migrated: str) -> Iterator[str]:
    """A migrated database, and the role that the collector logs in as."""
    cluster.psql(f"CREATE ROLE {ROLE} LOGIN; GRANT pg_read_all_data TO {ROLE}")
    with copy_of(cluster, migrated) as made:
        yield made
    cluster.psql(f"DROP ROLE {ROLE}")


def reported(cluster: Cluster, name: str, maintenance: Maintenance = MAINTENANCE) -> dict[str, dict[str, float]]:
    """Samples by metric and by the value of their only label ("" without one)."""
    with connect_pinned(cluster.url(name, ROLE), application="test") as session:
        found = [each for read in database.CATALOGUE.values() for each in read(session)]
    with connect_pinned(cluster.url(name), application="test") as session:  # as the owner of these tables
        found += database.tables(session, maintenance)
    return {each.name: {"".join(labels.values()): value for labels, value in each.samples} for each in found}


def test_a_database_before_its_first_migration_tells_what_is_there(cluster: Cluster, name: str) -> None:
    cluster.psql(f"CREATE DATABASE {name}_empty")
    try:
        found = reported(cluster, f"{name}_empty")
    finally:
        cluster.psql(f"DROP DATABASE {name}_empty WITH (FORCE)")
    assert found["provision_migration_dirty"] == {}
    assert found["provision_retention_oldest_seconds"] == {}
    assert found["provision_shared_buffers_bytes"][""] >= 2**20
    assert found["provision_transaction_ids_used_ratio"]["postgres"] < 0.1


def test_the_role_can_write_nothing(cluster: Cluster, name: str) -> None:
    with (
        psycopg.connect(cluster.url(name, ROLE), autocommit=True) as session,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        session.execute("DELETE FROM agents")


def test_a_dirty_migration_is_reported(cluster: Cluster, name: str) -> None:
    cluster.psql("CREATE TABLE schema_migrations (version bigint, dirty boolean)", name)
    cluster.psql("INSERT INTO schema_migrations VALUES (7, false)", name)
    assert reported(cluster, name)["provision_migration_dirty"] == {"": 0}
    cluster.psql("UPDATE schema_migrations SET dirty = true", name)
    found = reported(cluster, name)
    assert found["provision_migration_dirty"] == {"": 1}
    assert found["provision_migration_version"] == {"": 7}


def test_wal_kept_is_exported_for_each_slot(cluster: Cluster, name: str) -> None:
    assert reported(cluster, name)["provision_slot_wal_bytes"] == {}
    cluster.psql("SELECT pg_create_physical_replication_slot('kept', true)")
    try:
        cluster.psql("CREATE TABLE filler AS SELECT repeat('x', 100) FROM generate_series(1, 10000)", name)
        found = reported(cluster, name)
    finally:
        cluster.psql("SELECT pg_drop_replication_slot('kept')")
    assert found["provision_slot_wal_bytes"]["kept"] > 1_000_000
    assert found["provision_inactive_slot_wal_bytes"][""] == pytest.approx(
        found["provision_slot_wal_bytes"]["kept"], rel=0.1
    )
    assert reported(cluster, name)["provision_inactive_slot_wal_bytes"] == {"": 0}


def test_a_view_in_place_of_a_table_is_not_asked(cluster: Cluster, name: str) -> None:
    cluster.psql(
        "CREATE FUNCTION trap() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$trapped$$; END';"
        "CREATE VIEW schema_migrations AS SELECT trap() AS version, false AS dirty;"
        "ALTER TABLE activities RENAME TO hidden;"
        "CREATE VIEW activities AS SELECT to_timestamp(trap()) AS created_at",
        name,
    )
    found = reported(cluster, name)
    assert found["provision_migration_version"] == {}
    assert set(found["provision_retention_oldest_seconds"]) == {"metrics", "closed sessions", "expired sessions"}


def test_sequences_tell_how_much_is_used(cluster: Cluster, name: str) -> None:
    cluster.psql("CREATE SEQUENCE few MAXVALUE 101; SELECT setval('few', 91)", name)
    cluster.psql("CREATE SEQUENCE again MAXVALUE 10 CYCLE; SELECT setval('again', 10)", name)
    cluster.psql("CREATE SEQUENCE fresh", name)
    found = reported(cluster, name)["provision_sequence_used_ratio"]
    assert found["public.few"] == pytest.approx(0.9)
    assert not {"public.again", "public.fresh"} & set(found)


def test_bloat_is_what_deleted_rows_left_and_no_more(cluster: Cluster, name: str) -> None:
    for table, fill in (("narrow", 100), ("loose", 50)):
        cluster.psql(
            f"CREATE TABLE {table} (a int, b text) WITH (fillfactor = {fill}, autovacuum_enabled = off);"
            f"INSERT INTO {table} SELECT n, repeat('x', 400) FROM generate_series(1, 20000) n; ANALYZE {table}",
            name,
        )
    cluster.psql(
        "CREATE TABLE wide (e vector(1536)); ALTER TABLE wide ALTER e SET STORAGE PLAIN;"
        "INSERT INTO wide SELECT array_fill(0.5, ARRAY[1536])::vector FROM generate_series(1, 200); ANALYZE wide",
        name,
    )
    found = reported(cluster, name)
    for table in ("narrow", "loose", "wide"):
        share = (
            found["provision_table_bloat_bytes"][f"public.{table}"] / found["provision_table_bytes"][f"public.{table}"]
        )
        assert share < 0.05, table
    cluster.psql("DELETE FROM narrow WHERE a % 4 > 0; VACUUM (ANALYZE) narrow", name)
    found = reported(cluster, name)
    share = found["provision_table_bloat_bytes"]["public.narrow"] / found["provision_table_bytes"]["public.narrow"]
    assert 0.7 < share < 0.8


def test_dead_rows_are_reported_until_they_are_removed(cluster: Cluster, name: str) -> None:
    cluster.psql(
        "CREATE TABLE t (a int) WITH (autovacuum_enabled = off); INSERT INTO t SELECT generate_series(1, 50)", name
    )
    cluster.psql("DELETE FROM t WHERE a <= 20; ANALYZE t", name)
    assert reported(cluster, name)["provision_table_dead_rows"]["public.t"] == 20
    cluster.psql("VACUUM t", name)
    assert reported(cluster, name)["provision_table_dead_rows"]["public.t"] == 0


def test_a_table_that_was_never_analyzed_has_no_estimate(cluster: Cluster, name: str) -> None:
    cluster.psql("CREATE TABLE unknown AS SELECT 1 AS a", name)
    found = reported(cluster, name)
    assert found["provision_table_bytes"]["public.unknown"] == 8192
    assert "public.unknown" not in found["provision_table_bloat_bytes"]


def test_hnsw_indexes_tell_their_size(cluster: Cluster, name: str) -> None:
    size = int(cluster.psql("SELECT pg_relation_size('memories_embedding_idx')", name))
    assert reported(cluster, name)["provision_hnsw_index_bytes"] == {"public.memories_embedding_idx": size}


def test_retention_tells_the_oldest_row_and_the_promise(cluster: Cluster, name: str) -> None:
    cluster.psql("INSERT INTO agents (name) VALUES ('a')", name)
    cluster.psql("INSERT INTO activities (activity_type, created_at) VALUES ('x', now() - interval '93 days')", name)
    cluster.psql(
        "ALTER TABLE sessions DISABLE TRIGGER USER;"
        "INSERT INTO sessions (agent_id, status, updated_at, expires_at)"
        " SELECT id, s, now() - interval '8 days', now() + interval '1 day' * d FROM agents,"
        " (VALUES ('closed', NULL), ('active', -1), ('active', 1)) v (s, d)",
        name,
    )
    days = {"activities": 10, "metrics": 0, "closed sessions": 7}
    rules = tuple(replace(rule, days=days[rule.name]) for rule in MAINTENANCE.retention)
    found = reported(cluster, name, replace(MAINTENANCE, retention=rules))
    oldest = {rule: round(age / 86400, 2) for rule, age in found["provision_retention_oldest_seconds"].items()}
    assert oldest == {"activities": 93, "closed sessions": 8, "expired sessions": 1}
    promised = {"activities": 864000, "closed sessions": 604800, "expired sessions": 0}
    assert found["provision_retention_promised_seconds"] == promised


def test_a_query_that_is_refused_is_an_error_of_ours(cluster: Cluster, name: str) -> None:
    cluster.psql("CREATE TABLE schema_migrations (version bigint)", name)
    with pytest.raises(DatabaseError, match="the server refused a query") as refused:
        reported(cluster, name)
    assert "dirty" in refused.value.seen


def test_rule_of_another_table_reports_the_rows_that_it_applies_to(cluster: Cluster, name: str) -> None:
    cluster.psql(
        'CREATE TABLE "Odd" (id int, "At" timestamptz, seen timestamptz, status text);'
        "INSERT INTO \"Odd\" VALUES (1, now() - interval '9 days', now() - interval '2 days', 'open'),"
        " (2, now() - interval '7 days', now() - interval '3 days', 'done')",
        name,
    )
    due = {"all": "seen < {cutoff}", "some": "status = 'done' AND seen < {cutoff}", "other": "seen + '1 h' < {cutoff}"}
    rules = tuple(Retention(rule, "Odd", "At", condition, 30, "delete") for rule, condition in due.items())
    found = reported(cluster, name, replace(MAINTENANCE, retention=rules, cleanup=False))
    oldest = {rule: round(age / 86400) for rule, age in found["provision_retention_oldest_seconds"].items()}
    assert oldest == {"all": 3, "some": 3, "other": 9}


def test_source_that_fails_hides_no_other(
    cluster: Cluster, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    server = {"socket_directory": cluster.host, "port": cluster.port}
    for database_name, success in ((name, 1), ("missing", 0)):
        access = {"database": database_name, "extensions": ("vector", "uuid-ossp")}
        plan = sample(server=server, access=access, pooler={"enabled": False})
        path = write(tmp_path / "plan.json", plan)
        monkeypatch.setattr(load.load, "__defaults__", (path,))
        found = collect()
        assert f'provision_collector_success{{collector="database"}} {success}\n' in found.text
        assert 'provision_collector_success{collector="backup"} 1\n' in found.text
        assert ("provision_shared_buffers_bytes " in found.text) == bool(success)
        assert "provision_backup_age_limit_seconds 93600\n" in found.text
        assert [text.partition(":")[0] for text in found.failures] == (
            [] if success else [*database.CATALOGUE, "tables", "tenants"]
        )


def test_missing_statement_statistics_are_reported_and_hide_nothing(
    cluster: Cluster, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    server = {"socket_directory": cluster.host, "port": cluster.port}
    access = {"database": name, "extensions": ("vector", "uuid-ossp", "pg_stat_statements")}
    plan = sample(server=server, access=access, pooler={"enabled": False})
    monkeypatch.setattr(load.load, "__defaults__", (write(tmp_path / "plan.json", plan),))
    found = collect()
    (failure,) = found.failures
    assert failure.startswith("statements: no statement statistics")
    assert "provision_shared_buffers_bytes " in found.text


PLANTED = """
CREATE CAST (trap AS float8) WITH FUNCTION spring(trap);
CREATE TABLE schema_migrations (version trap, dirty boolean);
INSERT INTO schema_migrations VALUES (ROW(1), false);
"""
"""The table whose version is read with a cast to float8, which calls the function spring."""
ATTACK = (
    """
CREATE TYPE trap AS (n bigint);
CREATE FUNCTION spring(trap) RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE said text := current_user; BEGIN
  SELECT said || coalesce((SELECT rolpassword FROM pg_authid WHERE rolname = 'victim'), '') INTO said;
  RAISE EXCEPTION 'caught %', said;
EXCEPTION WHEN insufficient_privilege THEN RAISE EXCEPTION 'harmless %', said; END $$;
"""
    + PLANTED
)


def test_a_cast_of_the_owner_runs_with_the_owner_s_rights_and_hides_no_catalogue(
    cluster: Cluster, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.psql("CREATE ROLE victim PASSWORD 'a secret'")
    try:
        cluster.psql(ATTACK, name, "minion")
        monkeypatch.setattr(system, "EVIDENCE", tmp_path)
        server = {"socket_directory": cluster.host, "port": cluster.port}
        access = {"database": name, "extensions": ("vector", "uuid-ossp")}
        plan = sample(server=server, access=access, pooler={"enabled": False})
        monkeypatch.setattr(load.load, "__defaults__", (write(tmp_path / "plan.json", plan),))
        found = collect()
    finally:
        cluster.psql("DROP ROLE victim")
    (failure,) = found.failures
    assert failure.startswith("tables: ")
    assert "harmless minion" in failure
    assert "provision_shared_buffers_bytes " in found.text


def collected(cluster: Cluster, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Collected:
    """Run `provision metrics` for this database."""
    monkeypatch.setattr(system, "EVIDENCE", folder)
    server = {"socket_directory": cluster.host, "port": cluster.port}
    access = {"database": name, "extensions": ("vector", "uuid-ossp")}
    plan = sample(server=server, access=access, pooler={"enabled": False})
    monkeypatch.setattr(load.load, "__defaults__", (write(folder / "plan.json", plan),))
    return collect()


def test_a_held_lock_hides_the_locked_relations_alone_and_says_so(
    cluster: Cluster, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: a tenant locks a table, an index or a sequence, to blind the monitoring of the whole server."""
    cluster.psql("CREATE TABLE schema_migrations (version bigint, dirty boolean)", name, "minion")
    cluster.psql("CREATE SEQUENCE kept; SELECT nextval('kept'); CREATE SEQUENCE hidden; SELECT nextval('hidden')", name)
    with psycopg.connect(cluster.url(name)) as tenant:
        tenant.execute("LOCK TABLE memories, activities, schema_migrations IN ACCESS EXCLUSIVE MODE")
        tenant.execute("REINDEX INDEX memories_embedding_idx")
        tenant.execute("ALTER SEQUENCE hidden MAXVALUE 7")
        begun = time.monotonic()
        found = collected(cluster, name, tmp_path, monkeypatch)
        assert time.monotonic() - begun < 20
    assert found.failures == ()
    samples = {each.name: {"".join(labels.values()): value for labels, value in each.samples} for each in found.metrics}
    unread = {"public.memories", "public.activities", "public.schema_migrations", "public.hidden"}
    unread |= {"public.memories_embedding_idx"}
    assert unread <= set(samples["provision_relation_unread"])
    assert "public.memories" not in samples["provision_table_bytes"]
    assert samples["provision_table_bytes"]["public.agents"] == 0
    assert set(samples["provision_sequence_used_ratio"]) >= {"public.kept"}
    assert "public.hidden" not in samples["provision_sequence_used_ratio"]
    assert samples["provision_migration_version"] == {}
    assert "activities" not in samples["provision_retention_oldest_seconds"]
    assert "metrics" in samples["provision_retention_oldest_seconds"]
    assert collected(cluster, name, tmp_path, monkeypatch).text.count("provision_relation_unread{") == 0


ENDLESS = (
    """
CREATE TYPE trap AS (n bigint);
CREATE FUNCTION spring(trap) RETURNS float8 LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('statement_timeout', '0', false);
  LOOP
    BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END;
  END LOOP;
END $$;
"""
    + PLANTED
)


def test_code_of_the_owner_that_catches_time_limits_is_ended_and_hides_its_own_tables_alone(
    cluster: Cluster, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: a cast catches the statement timeout and runs on, so that no metrics are ever written again."""
    cluster.psql(ENDLESS, name, "minion")
    monkeypatch.setattr(metrics_of_host, "OWNER_S", 7)
    begun = time.monotonic()
    found = collected(cluster, name, tmp_path, monkeypatch)
    assert 5 < time.monotonic() - begun < 40
    (failure,) = found.failures
    assert failure.startswith("tables: ")
    assert "terminating connection" in failure
    assert "provision_shared_buffers_bytes " in found.text
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%schema_migrations%' AND pid <> pg_backend_pid()"
    assert cluster.psql(running) == "0"


def test_policy_of_the_owner_that_never_ends_does_not_hold_the_doctor(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: the doctor reads the version table as its owner, whose policy catches every time limit."""
    cluster.psql(
        "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);"
        "INSERT INTO schema_migrations VALUES (2, false);"
        "CREATE FUNCTION never() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600);"
        " EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$;"
        "ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY wait ON schema_migrations USING (never())",
        name, "minion",
    )  # fmt: skip
    server = {"socket_directory": cluster.host, "port": cluster.port}
    plan = sample(server=server, access={"database": name}, migrations={"directory": str(ROOT / "migrations")})
    monkeypatch.setattr(drift, "OWNER_S", 2)
    monkeypatch.setattr(drift, "LIMITS", "options='-c statement_timeout=1s'")
    begun = time.monotonic()
    with pytest.raises(ProvisionError, match="connection"):
        drift._situation(plan)
    assert 1 < time.monotonic() - begun < 20
