"""Many tenants of a real server: read in few queries, counted in the metrics, and none of them hides the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from provision.checks import tenants as checks
from provision.database import Connection
from provision.host.access import Access
from provision.host.maintain import run as maintain
from provision.host.maintain import tenants as maintenance
from provision.host.metrics import database, exposition
from provision.host.metrics import tenants as metrics
from provision.host.migrate.ledger import State
from provision.host.tenants import login, versions
from tests.integration.test_tenants import _as_postgres, findings, fresh, here
from tests.tenants import MIGRATIONS, Place

__all__ = ["_as_postgres", "fresh", "here"]  # fixtures


@contextmanager
def as_backup(here: Place) -> Iterator[Connection]:
    """A session with the rights of the role that collects metrics."""
    with login.superuser(here.plan) as session:
        session.execute("SET SESSION AUTHORIZATION minion_backup")
        yield session


def measured(session: Connection, directory: Path = MIGRATIONS) -> dict[str, dict[str, float]]:
    """Return the samples of tenants by metric, without the prefix, and by label."""
    found = metrics.read(session, directory)
    assert exposition.render(found)
    return {
        each.name.removeprefix("provision_"): {"".join(labels.values()): value for labels, value in each.samples}
        for each in found
    }


def test_grants_of_three_tenants_are_compared_in_as_many_queries_as_of_one(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = Access.ask

    def counted(self: Access, query: str, *given: object) -> list[tuple[object, ...]]:
        asked.append(query)
        return original(self, query, *given)

    monkeypatch.setattr(Access, "ask", counted)
    numbers = []
    for name in ("one", "two", "three"):
        fresh.add(name, migrate=False)
        asked.clear()
        assert findings(fresh).get("access") is None
        numbers.append(len(asked))
    assert numbers[0] > 10
    assert len(set(numbers)) == 1, numbers


def test_changed_grants_of_several_tenants_are_found_and_restored(fresh: Place) -> None:
    for name in ("acme", "beta", "gamma"):
        fresh.add(name)
    fresh.ask("acme", "GRANT SELECT (content) ON memories TO beta_app; GRANT USAGE ON SCHEMA acme TO PUBLIC")
    fresh.ask("beta", "REVOKE INSERT ON memories FROM beta_app; REVOKE UPDATE ON agents FROM beta")
    fresh.ask("beta", "GRANT SELECT ON agents TO beta_app WITH GRANT OPTION")
    fresh.ask("beta_app", "GRANT SELECT ON agents TO PUBLIC")
    fresh.ask("gamma", "ALTER DEFAULT PRIVILEGES IN SCHEMA gamma GRANT SELECT ON TABLES TO PUBLIC")
    found = findings(fresh)["access"]
    assert {each.removeprefix("to apply: ") for each in found} >= {
        "schema acme: REVOKE USAGE FROM PUBLIC",
        "table beta.agents: REVOKE GRANT OPTION FOR SELECT FROM beta_app",
        "table beta.memories: GRANT INSERT TO beta_app",
        "table beta.agents: GRANT UPDATE TO beta",
        "future tables of schema gamma: REVOKE SELECT FROM PUBLIC",
    }
    assert fresh.converge() != []
    assert fresh.converge() == []
    assert findings(fresh) == {}
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        fresh.ask("gamma_app", "SELECT name FROM beta.agents")


def test_temporary_logins_take_no_place_in_the_statistics_of_statements(fresh: Place) -> None:
    fresh.server.psql("SELECT pg_stat_statements_reset()", "minion")
    fresh.add("acme")
    assert maintenance.run_all(fresh.plan, maintain.run(fresh.plan, "index"))["outcome"] == "done"
    fresh.ask("acme_app", "SELECT count(*) FROM agents")
    users = "SELECT DISTINCT coalesce(r.rolname, 'dropped') FROM pg_stat_statements s LEFT JOIN pg_roles r"
    found = fresh.server.psql(f"{users} ON r.oid = s.userid", "minion").splitlines()
    assert "acme_app" in found
    assert "dropped" not in found


SPOILT = {
    "filled": "INSERT INTO schema_migrations SELECT n, false FROM generate_series(10, 100000) n",
    "foreign": "DROP TABLE schema_migrations; CREATE TABLE schema_migrations (version text, dirty text);"
    " INSERT INTO schema_migrations VALUES ('a', 'b')",
    "vacant": "DROP TABLE schema_migrations; CREATE TABLE schema_migrations (version bigint, dirty boolean);"
    " INSERT INTO schema_migrations VALUES (NULL, NULL)",
    "viewed": "DROP TABLE schema_migrations; CREATE FUNCTION trap() RETURNS bigint LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM pg_sleep(3600); RETURN 1; END $$;"
    " CREATE VIEW schema_migrations AS SELECT trap() AS version, false AS dirty",
}
"""What owners do to their own version table."""
POLICY = (
    "CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the trap ran'; END $$;"
    "ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
    "CREATE POLICY trap ON schema_migrations USING (trap())"
)


def test_tenant_that_spoils_its_version_table_hides_itself_alone(fresh: Place) -> None:
    """Attack: a tenant locks, fills or replaces its version table. The versions of the others can still be read."""
    names = ["fine", "locked", "guarded", *SPOILT]
    for name in names:
        fresh.add(name)
    for name, statement in SPOILT.items():
        fresh.ask(name, statement)
    fresh.ask("guarded", POLICY)
    with fresh.session("locked") as holder, holder.transaction():
        holder.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        with login.superuser(fresh.plan) as session:
            begun = time.monotonic()
            found = versions.read(session, names)
            assert time.monotonic() - begun < 5
            assert session.execute("SHOW lock_timeout").fetchone() == ("0",)
            seen = [each[0] for each in checks.versions(fresh.plan, session)]
        with as_backup(fresh) as session:
            of_backup = versions.read(session, names)
            states = measured(session)["tenants"]
    assert found["fine"] == found["guarded"] == of_backup["fine"] == State(2, dirty=False)
    assert found["filled"] == "filled.schema_migrations has more than one row"
    assert found["foreign"] == "foreign.schema_migrations belongs to another tool"
    assert found["vacant"] == "vacant.schema_migrations has a row without a version"
    assert found["viewed"] == "viewed.schema_migrations is not an ordinary table"
    assert "lock timeout" in str(found["locked"])
    assert "row-level security" in str(of_backup["guarded"])
    assert len([each for each in seen if "cannot be read" in each]) == 5
    assert states == {"current": 1, "pending": 0, "dirty": 0, "unknown": 6}


def test_metrics_show_the_largest_tenants_and_sums_of_the_others(fresh: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with as_backup(fresh) as session:
        assert measured(session)["tenants"] == {"current": 0, "pending": 0, "dirty": 0, "unknown": 0}
    for name in ("acme", "beta", "late", "gone"):
        fresh.add(name, migrate=name != "late")
    fresh.remember("acme", "one", pooled=False)
    fresh.ask("acme_app", "INSERT INTO memories (agent_id, content) SELECT agents.id, 'x' FROM agents,"
              " generate_series(1, 3000)")  # fmt: skip
    fresh.ask("beta", "UPDATE schema_migrations SET dirty = true")
    fresh.ask("gone", "DROP SCHEMA gone CASCADE")
    fresh.server.psql("VACUUM ANALYZE", "minion")
    with fresh.session("acme_app"), fresh.session("acme"), as_backup(fresh) as session:
        found = measured(session)
        monkeypatch.setattr(metrics, "TOP", 2)
        fewer = measured(session)
        without_files = measured(session, fresh.server.root / "missing")
    assert found["tenants"] == {"current": 1, "pending": 1, "dirty": 1, "unknown": 1}
    assert found["tenant_bytes"]["acme"] > found["tenant_bytes"]["beta"] > found["tenant_bytes"]["late"] == 0
    exact = int(fresh.server.psql("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'"
                                  " AND relnamespace = 'acme'::regnamespace", "minion"))  # fmt: skip
    assert found["tenant_bytes"]["acme"] == pytest.approx(exact, rel=0.2)
    assert found["tenant_rows"]["acme"] >= 3002
    assert found["tenant_vectors"]["acme"] == pytest.approx(1, abs=0.1)
    assert found["tenant_sessions"] == {"acme": 2, "beta": 0, "gone": 0, "late": 0}
    assert found["tenant_migration_version"] == {"acme": 2, "beta": 2, "late": -1}
    assert found["tenant_migrations_pending"] == {"acme": 0, "beta": 0, "late": 2}
    assert list(fewer["tenant_bytes"]) == ["acme", "beta", metrics.OTHERS]
    assert sum(fewer["tenant_bytes"].values()) == sum(found["tenant_bytes"].values())
    assert sum(fewer["tenant_sessions"].values()) == 2
    assert fewer["tenants"] == found["tenants"]
    assert without_files["tenant_migrations_pending"] == {"acme": 0, "beta": 0}


def test_tables_and_indexes_of_many_tenants_have_a_bounded_number_of_series(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("acme", "beta"):
        fresh.add(name)
    fresh.ask("minion", "CREATE TABLE public.empty ()")
    fresh.server.psql("VACUUM ANALYZE", "minion")
    try:
        with as_backup(fresh) as session:
            every = {each.name: dict(_pairs(each)) for read in database.CATALOGUE.values() for each in read(session)}
            for query in ("_TABLES", "_HNSW", "_SEQUENCES"):
                text = getattr(database, query).replace(f"LIMIT {database.MOST}", "LIMIT 3")
                monkeypatch.setattr(database, query, text.replace(f"place <= {database.MOST}", "place <= 1").replace(
                    f"place > {database.MOST}", "place > 1"))  # fmt: skip
            few = {each.name: dict(_pairs(each)) for read in database.CATALOGUE.values() for each in read(session)}
    finally:
        fresh.ask("minion", "DROP TABLE public.empty")
    assert len(every["provision_table_bytes"]) == 23
    assert len(few["provision_table_bytes"]) == 3
    assert "public.empty" in few["provision_table_bytes"]
    assert set(few["provision_hnsw_index_bytes"]) < {*every["provision_hnsw_index_bytes"], database.OTHERS}
    total = sum(every["provision_hnsw_index_bytes"].values())
    assert total > 0
    assert sum(few["provision_hnsw_index_bytes"].values()) == total


def _pairs(metric: exposition.Metric) -> Iterator[tuple[str, float]]:
    return (("".join(labels.values()), value) for labels, value in metric.samples)
