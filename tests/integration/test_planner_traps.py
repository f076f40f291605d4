"""Constant expressions of an owner, which the planner evaluates in any query of the table: none runs as the superuser.

A function that is declared immutable and called with constants is evaluated while a query is planned, in the session of
whoever asks, whatever the query reads.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from provision.checks.registry import Scope, examine, unknown_site
from provision.database import connect_pinned
from provision.host import grants
from provision.host.access import Access, Role
from provision.host.backup import counts, dump
from tests.clusters import Cluster

FUNCTIONS = """
CREATE FUNCTION public.attempt() RETURNS void LANGUAGE plpgsql AS $$
BEGIN CREATE ROLE planted SUPERUSER; EXCEPTION WHEN OTHERS THEN NULL; END $$;
CREATE FUNCTION public.spring() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
  'BEGIN PERFORM public.attempt(); RETURN true; END';
CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);
INSERT INTO schema_migrations VALUES (3, true);
CREATE TABLE agents (id int, name text);
INSERT INTO agents VALUES (1, 'a'), (2, 'b');
"""
TRAPS = {
    "predicate": "CREATE INDEX ON {} (({} IS NULL)) WHERE public.spring()",
    "expression": "CREATE INDEX ON {} ((public.spring() OR {} IS NULL))",
    "statistics": "CREATE STATISTICS {}_s ON (public.spring() OR {} IS NULL) FROM {}",
}
COLUMNS = {"agents": "id", "schema_migrations": "version"}


@pytest.fixture(params=sorted(TRAPS))
def trapped(cluster: Cluster, database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    cluster.psql(f"ALTER SCHEMA public OWNER TO minion; ALTER DATABASE {database} OWNER TO minion", database)
    traps = [TRAPS[request.param].format(table, column, table) for table, column in COLUMNS.items()]
    cluster.psql(f"{FUNCTIONS} {'; '.join(traps)}", database, "minion")
    yield database
    cluster.psql("DROP ROLE IF EXISTS planted")


def planted(cluster: Cluster) -> bool:
    return cluster.psql("SELECT count(*) FROM pg_roles WHERE rolname = 'planted'") == "1"


def test_the_trap_is_real(cluster: Cluster, trapped: str) -> None:
    assert not planted(cluster)
    assert cluster.psql("SELECT count(*) FROM agents", trapped) == "2"
    assert planted(cluster)


def test_reference_counts_and_counts_of_a_dump_run_no_code_of_the_owner(cluster: Cluster, trapped: str) -> None:
    taken = counts.take(cluster.url(trapped), "point")["tables"]
    assert {name: row["rows"] for name, row in taken.items()} == {"public.agents": 2, "public.schema_migrations": 1}
    with connect_pinned(cluster.url(trapped), application="test") as session:
        assert dump.contents(session)["rows"] == {"public.agents": 2, "public.schema_migrations": 1}
    assert not planted(cluster)


def test_checks_of_the_doctor_run_no_code_of_the_owner(cluster: Cluster, trapped: str) -> None:
    with connect_pinned(cluster.url(trapped), application="test") as session:
        found = {each.id: each.seen for each in examine(Scope.DATABASE, session, site=unknown_site)}
    assert found["migrations-dirty"] == "version 3 is dirty"
    assert not planted(cluster)


def test_convergence_of_privileges_runs_no_code_of_the_owner(cluster: Cluster, trapped: str) -> None:
    with connect_pinned(cluster.url(trapped), application="test") as session:
        access = Access(session, plan=True)
        grants.converge(access, [grants.Schema("public", "minion", [Role("minion", "owner")])])
        access.large_objects("minion")
    assert not planted(cluster)


def test_rows_of_partitions_and_heirs_count_as_in_a_query(cluster: Cluster, database: str) -> None:
    cluster.psql(
        "CREATE TABLE parts (n int) PARTITION BY RANGE (n); CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO"
        " (9) PARTITION BY RANGE (n); CREATE TABLE lowest PARTITION OF low FOR VALUES FROM (0) TO (5);"
        "CREATE TABLE high PARTITION OF parts FOR VALUES FROM (9) TO (99); INSERT INTO parts VALUES (1), (2), (10);"
        "CREATE TABLE parent (n int); CREATE TABLE heir (m text) INHERITS (parent);"
        "INSERT INTO parent VALUES (1); INSERT INTO heir VALUES (2, 'a'), (3, 'b'); CREATE TABLE bare ();"
        "INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES;"
        "CREATE TABLE made (a int, b int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO made VALUES (1), (2);"
        "ALTER TABLE made ADD c text DEFAULT E'a\\\\nb\\\\tc'; ALTER TABLE made DROP COLUMN a CASCADE",
        database,
    )
    expected = {"bare": 2, "heir": 2, "high": 1, "low": 2, "lowest": 2, "made": 2, "parent": 3, "parts": 3}
    with connect_pinned(cluster.url(database), application="test") as session:
        rows = dump.contents(session)["rows"]
    assert rows == {f"public.{name}": count for name, count in expected.items()}
    taken = counts.take(cluster.url(database), "point")["tables"]
    assert {name: row["rows"] for name, row in taken.items()} == rows


def test_figures_of_an_earlier_version_are_compared_by_rows_alone() -> None:
    earlier = {"tables": {"public.t": {"rows": 2, "checksum": "77"}}, "extensions": {}}
    now = {"form": "copy", "tables": {"public.t": {"rows": 2, "checksum": "5"}}, "extensions": {}}
    assert counts.differences(earlier, now) == []
    fewer = {**now, "tables": {"public.t": {"rows": 1, "checksum": "5"}}}
    assert counts.differences(earlier, fewer) == ["public.t: {'rows': 2} in the backup, {'rows': 1} after the restore"]
    other = {**now, "tables": {"public.t": {"rows": 2, "checksum": "6"}}}
    assert len(counts.differences(now, other)) == 1
