"""Maintenance of a real server: due rows go and no others, and the application does not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from provision import system
from provision.database import connect, try_locks
from provision.errors import DatabaseError
from provision.host.backup import journal
from provision.host.maintain import indexes, run
from provision.host.migrate.ledger import Ledger
from provision.plan.schema import Plan, Retention
from tests.clusters import Cluster
from tests.integration.rows import AGENT, Session, count, rows
from tests.plans import sample

LOCK_MS = 500
DUE = """
INSERT INTO agents (id, name) VALUES ('{agent}', 'one') ON CONFLICT DO NOTHING;
INSERT INTO activities (agent_id, activity_type, created_at)
SELECT '{agent}', CASE WHEN i <= {due} THEN 'old' ELSE 'new' END,
    now() - CASE WHEN i <= {due} THEN interval '90 days 1 hour' ELSE interval '89 days 23 hours' END
        - i * interval '1 second' * (CASE WHEN i <= {due} THEN 1 ELSE 0 END)
FROM generate_series(1, {all}) i;
INSERT INTO metrics (agent_id, name, value, timestamp)
SELECT '{agent}', CASE WHEN i <= {due} THEN 'old' ELSE 'new' END, 1,
    now() - CASE WHEN i <= {due} THEN interval '30 days 1 hour' ELSE interval '29 days 23 hours' END
FROM generate_series(1, {all}) i;
INSERT INTO sessions (agent_id, user_id, status, updated_at, expires_at)
SELECT '{agent}', k.name, k.status, now() - k.age, now() + k.expires
FROM (VALUES ('archived by now', 'closed', interval '7 days 1 hour', interval '1 day'),
             ('closed', 'closed', interval '6 days 23 hours', NULL),
             ('forgotten', 'active', interval '99 days', NULL),
             ('expired', 'active', interval '0', interval '-1 minute'),
             ('alive', 'active', interval '0', interval '1 hour')) k (name, status, age, expires),
    generate_series(1, {sessions});
"""


@pytest.fixture
def plan(schema: Session) -> Plan:
    info = schema.info
    return sample(
        server={"socket_directory": info.host, "port": info.port},
        access={"database": info.dbname, "owner": info.user},
        maintenance={"batch_rows": 5000, "lock_timeout_ms": LOCK_MS, "migration_wait_s": 1, "bloat_mb": 1},
    )


@pytest.fixture(autouse=True)
def _evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path / "evidence")


def owner(plan: Plan) -> str:
    return plan.server.url(plan.access.database, plan.access.owner)


def changed(plan: Plan, **fields: Any) -> Plan:
    return replace(plan, maintenance=replace(plan.maintenance, **fields))


def fill(schema: Session, everything: int, due: int, sessions: int = 50) -> None:
    schema.execute(DUE.format(agent=AGENT, all=everything, due=due, sessions=sessions).encode())


def steps(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["what"]: step for step in facts["steps"]}


@contextmanager
def application(schema: Session, url: str) -> Iterator[list[float]]:
    """Work as the application does, on old rows and new ones, until the end of the block; give each statement's ms."""
    ended, waits = threading.Event(), list[float]()
    (session,) = rows(schema, "SELECT min(id::text) FROM sessions WHERE user_id = 'closed'")[0]

    def work() -> None:
        statements = (
            f"INSERT INTO activities (agent_id, activity_type) VALUES ('{AGENT}', 'live')",
            f"INSERT INTO metrics (agent_id, name, value) VALUES ('{AGENT}', 'live', 1)",
            f"UPDATE sessions SET history = history || '[1]' WHERE id = '{session}'",
            "INSERT INTO feedback (agent_id, activity_id) SELECT agent_id, id FROM activities"
            " ORDER BY created_at LIMIT 1",
            "UPDATE sessions SET working_memory = '{}' WHERE id = (SELECT id FROM sessions WHERE user_id = 'expired'"
            " LIMIT 1)",
            "SELECT count(*) FROM (SELECT FROM activities ORDER BY created_at DESC LIMIT 100) t",
        )
        with psycopg.connect(url, autocommit=True) as connection:
            while not ended.is_set():
                for statement in statements:
                    begun = time.monotonic()
                    with suppress(psycopg.errors.ForeignKeyViolation):  # feedback about what has just been deleted
                        connection.execute(statement.encode())
                    waits.append((time.monotonic() - begun) * 1000)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield waits
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def left(schema: Session) -> dict[str, int]:
    return {
        "old activities": count(schema, "activities", "activity_type = 'old'"),
        "new activities": count(schema, "activities", "activity_type = 'new'"),
        "old metrics": count(schema, "metrics", "name = 'old'"),
        "new metrics": count(schema, "metrics", "name = 'new'"),
        "archived": count(schema, "sessions", "status = 'archived'"),
        "archived of others": count(schema, "sessions", "status = 'archived' AND user_id <> 'archived by now'"),
        "expired": count(schema, "sessions", "user_id = 'expired'"),
        "sessions": count(schema, "sessions"),
    }


def maintain_beside_the_application(schema: Session, plan: Plan, everything: int, due: int) -> dict[str, Any]:
    fill(schema, everything, due)
    with application(schema, owner(plan)) as waits:
        facts = [run.run(plan, job) for job in ("retention", "sessions")]
    # A row that the application held was skipped; alone, the next run takes it.
    again = [run.run(plan, job) for job in ("retention", "sessions")]
    assert [each["outcome"] for each in facts + again] == ["done"] * 4, facts + again
    assert left(schema) == {
        "old activities": 0, "new activities": everything - due, "old metrics": 0, "new metrics": everything - due,
        "archived": 50, "archived of others": 0, "expired": 0, "sessions": 200,
    }  # fmt: skip
    assert len(waits) > 100
    assert max(waits) <= LOCK_MS, f"of {len(waits)} statements the slowest waited {max(waits):.0f} ms"
    done = steps(facts[0])
    return {"statements": len(waits), "slowest_ms": round(max(waits), 1), "seconds": facts[0]["seconds"], **done}


def test_what_is_due_goes_and_nothing_else_while_the_application_works(schema: Session, plan: Plan) -> None:
    done = maintain_beside_the_application(schema, plan, everything=60_000, due=40_000)
    assert done["activities"]["batches"] > 4


@pytest.mark.faults
def test_a_million_rows_go_while_the_application_works(schema: Session, plan: Plan) -> None:
    print(maintain_beside_the_application(schema, plan, everything=1_000_000, due=700_000))


def test_a_dry_run_counts_and_changes_nothing(schema: Session, plan: Plan) -> None:
    fill(schema, 300, 200)
    before = left(schema)
    assert steps(run.run(plan, "retention", dry=True))["activities"] == {"what": "activities", "rows": 200}
    assert steps(run.run(plan, "retention", dry=True))["closed sessions"]["rows"] == 50
    assert steps(run.run(plan, "sessions", dry=True))["expired sessions"]["rows"] == 50
    assert left(schema) == before


def test_zero_days_keep_everything(schema: Session, plan: Plan) -> None:
    fill(schema, 30, 20)
    before = left(schema)
    rules = tuple(replace(rule, days=0) for rule in plan.maintenance.retention)
    for job in ("retention", "sessions"):
        run.run(changed(plan, retention=rules, cleanup=False), job)
    assert left(schema) == before


ODD = """
CREATE TABLE "Odd ""Table" (id int PRIMARY KEY, "At %" timestamptz, status text);
INSERT INTO "Odd ""Table" SELECT i, now() - i * interval '1 day', CASE WHEN i % 2 = 0 THEN 'done' END
FROM generate_series(1, 9) i;
"""


@pytest.mark.parametrize(
    ("action", "expected"),
    [("delete", [(None, 5), ("done", 2)]), ("archive", [(None, 5), ("archived", 2), ("done", 2)])],
)
def test_rule_of_another_table_is_applied_whatever_its_name(
    schema: Session, plan: Plan, action: str, expected: list[tuple[str | None, int]]
) -> None:
    schema.execute(ODD)
    rule = Retention("odd", 'Odd "Table', "At %", "status = 'done' AND \"At %\" < {cutoff}", 5, action)
    assert run.run(changed(plan, retention=(rule,)), "retention")["outcome"] == "done"
    query = 'SELECT status, count(*) FROM "Odd ""Table" GROUP BY 1 ORDER BY 1 NULLS FIRST'
    assert rows(schema, query) == expected


def test_locked_rows_are_left_for_the_next_run(schema: Session, plan: Plan) -> None:
    fill(schema, 30, 20)
    with psycopg.connect(owner(plan)) as holder:
        holder.execute("SELECT 1 FROM activities WHERE activity_type = 'old' LIMIT 5 FOR UPDATE")
        assert run.run(plan, "retention")["outcome"] == "done"
        assert left(schema)["old activities"] == 5
    run.run(plan, "retention")
    assert left(schema)["old activities"] == 0


def test_a_row_that_cannot_be_had_fails_the_run_and_names_the_table(
    schema: Session, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provision.host.maintain.batches.PATIENCE", 2)
    fill(schema, 4, 2)
    schema.execute(b"INSERT INTO feedback (agent_id, activity_id) SELECT agent_id, id FROM activities")
    with psycopg.connect(owner(plan)) as holder:
        holder.execute("UPDATE feedback SET comment = 'held'")  # what refers to the rows, not the rows
        facts = run.run(changed(plan, lock_timeout_ms=50), "retention")
    assert facts["outcome"] == "failed"
    assert "the rule activities makes no progress" in facts["why"]
    assert "table activities" in facts["why"]


def test_two_runs_do_not_overlap(plan: Plan) -> None:
    with journal.held(run.LOCK, ""):
        facts = run.run(plan, "retention")
    assert facts["outcome"] == "skipped"
    assert "another maintenance run is active on this host" in facts["why"]
    assert run.run(plan, "retention")["outcome"] == "done"


def test_tenant_that_takes_the_locks_is_named_and_fails_the_run(plan: Plan, cluster: Cluster) -> None:
    cluster.psql("CREATE ROLE lurker LOGIN")
    old = 0x6D61696E  # the key of the advisory lock that maintenance used before
    try:
        with connect(plan.server.url(plan.access.database, "lurker"), application="report") as tenant:
            assert tenant.info.user == "lurker"
            assert try_locks(tenant, [old])
            assert run.run(plan, "retention")["outcome"] == "done"
            with connect(owner(plan), application="keys") as mine:
                keys = Ledger(mine).keys
            assert try_locks(tenant, keys)
            facts = run.run(plan, "retention")
        assert facts["outcome"] == "failed"
        assert "a role that runs no migrations holds the migration lock" in facts["why"]
        assert "user lurker" in facts["why"]
        assert "pg_terminate_backend" in facts["why"]
    finally:
        cluster.psql("DROP ROLE lurker")


def test_it_stands_back_from_a_migration_and_a_migration_gets_in_between(schema: Session, plan: Plan) -> None:
    fill(schema, 30, 20)
    with connect(owner(plan), application="provision migrate") as migration:
        assert try_locks(migration, Ledger(migration).keys)
        facts = run.run(plan, "retention")
    assert facts["outcome"] == "skipped"
    assert "a migration is running" in facts["why"]
    assert left(schema)["old activities"] == 20
    run.run(plan, "retention")
    with connect(owner(plan), application="provision migrate") as migration:
        assert try_locks(migration, Ledger(migration).keys)


BLOAT = """
INSERT INTO agents (id, name) VALUES ('{agent}', 'one');
INSERT INTO metrics (agent_id, name, value, timestamp) SELECT '{agent}', 'm', 1, now() - i * interval '1 second'
FROM generate_series(1, 60000) i;
INSERT INTO memories (agent_id, content, embedding)
SELECT '{agent}', i::text, (SELECT array_agg(random() + 0 * i * j) FROM generate_series(1, 1536) j)::vector
FROM generate_series(1, 600) i;
"""


def test_only_what_is_bloated_is_built_anew_and_shrinks(schema: Session, plan: Plan) -> None:
    schema.execute(BLOAT.format(agent=AGENT).encode())
    schema.execute("VACUUM ANALYZE")
    fresh = {each.name: each for each in indexes.look(schema)}
    assert [name for name, each in fresh.items() if each.due(plan.maintenance)] == []
    assert fresh["memories_embedding_idx"].waste < 0.1
    schema.execute("DELETE FROM metrics WHERE id % 10 <> 0")
    schema.execute("DELETE FROM memories WHERE content::int % 5 <> 0")
    schema.execute("VACUUM ANALYZE")
    due = {each.name for each in indexes.look(schema) if each.due(plan.maintenance)}
    assert due == {"metrics_pkey", "metrics_timestamp_idx", "memories_embedding_idx"}
    reported = steps(run.run(plan, "index", dry=True))
    assert reported["REINDEX memories_embedding_idx"]["waste"] == "80 %"
    done = run.run(plan, "index")
    assert done["outcome"] == "done"
    for name in due:
        step = steps(done)[f"REINDEX {name}"]
        assert step["bytes_now"] < step["bytes"] / 2, step
    assert run.run(plan, "index")["steps"] == []


def test_the_estimate_is_near_what_pgstattuple_measures(schema: Session, plan: Plan) -> None:
    schema.execute(BLOAT.format(agent=AGENT).encode())
    schema.execute("DELETE FROM metrics WHERE id % 10 <> 0")
    schema.execute("VACUUM ANALYZE")
    estimated = {each.name: each for each in indexes.look(schema)}
    with psycopg.connect(plan.server.url(plan.access.database), autocommit=True) as superuser:
        superuser.execute("CREATE EXTENSION pgstattuple; GRANT pg_stat_scan_tables TO minion")
        try:
            measured = {each.name: each for each in indexes.look(schema)}
        finally:
            superuser.execute("REVOKE pg_stat_scan_tables FROM minion; DROP EXTENSION pgstattuple")
    assert {each.by for each in measured.values() if each.method == "btree"} == {"pgstatindex"}
    for name in ("metrics_pkey", "metrics_timestamp_idx"):
        assert abs(measured[name].waste - estimated[name].waste) < 0.1, (measured[name], estimated[name])


def test_a_leftover_of_a_killed_reindex_is_dropped_and_another_invalid_index_is_left(
    schema: Session, plan: Plan
) -> None:
    schema.execute("CREATE INDEX metrics_pkey_ccnew ON metrics (id); CREATE INDEX somebodys ON metrics (id)")
    with psycopg.connect(plan.server.url(plan.access.database), autocommit=True) as superuser:
        superuser.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid IN"
            " ('metrics_pkey_ccnew'::regclass, 'somebodys'::regclass)"
        )
    done = run.run(plan, "index")
    assert [step["what"] for step in done["steps"]] == ["DROP INDEX metrics_pkey_ccnew"]
    assert rows(schema, "SELECT to_regclass('metrics_pkey_ccnew') IS NULL, to_regclass('somebodys') IS NULL") == [
        (True, False)
    ]


def test_a_build_that_has_to_give_way_is_made_good_by_the_next_run(
    schema: Session, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "WAIT_S", 1)
    schema.execute(BLOAT.format(agent=AGENT).encode())
    schema.execute("DELETE FROM metrics WHERE id % 10 <> 0")
    schema.execute("VACUUM ANALYZE")
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    with psycopg.connect(owner(plan)) as old:
        old.execute("INSERT INTO metrics (name, value) VALUES ('old transaction', 1)")
        done = run.run(plan, "index")
        assert done["outcome"] == "done", done
        assert "lock timeout" in steps(done)["REINDEX metrics_pkey"]["gave_way"]
        assert ("metrics_pkey_ccnew",) in rows(schema, invalid)
    done = run.run(plan, "index")
    assert steps(done)["DROP INDEX metrics_pkey_ccnew"]["because"] == "INVALID"
    assert "bytes_now" in steps(done)["REINDEX metrics_pkey"]
    assert rows(schema, invalid) == []


def test_statistics_that_lag_behind_are_renewed(schema: Session, plan: Plan) -> None:
    fill(schema, 3000, 0)
    schema.execute("SELECT pg_stat_force_next_flush()") if schema.info.server_version >= 150000 else time.sleep(1)
    assert "ANALYZE activities" in steps(run.run(plan, "retention"))
    assert rows(schema, "SELECT last_analyze IS NOT NULL FROM pg_stat_user_tables WHERE relname = 'activities'") == [
        (True,)
    ]


def test_a_standby_is_left_alone() -> None:
    standby = Cluster.create()
    try:
        standby.stop()
        (standby.data / "standby.signal").touch()
        standby.start()
        at = sample(
            server={"socket_directory": standby.host, "port": standby.port},
            access={"database": "postgres", "owner": "postgres"},
        )
        facts = run.run(at, "retention")
    finally:
        standby.remove()
    assert facts["outcome"] == "skipped"
    assert "standby" in facts["why"]


def test_a_lost_server_is_an_error(plan: Plan) -> None:
    with pytest.raises(DatabaseError, match="cannot connect"):
        run.run(replace(plan, server=replace(plan.server, socket_directory="127.0.0.1", port=1)), "retention")


def test_rows_of_no_year_that_python_knows_go_too(schema: Session, plan: Plan) -> None:
    """A program that sets no time writes the year 1, which west of Greenwich is the year 1 before Christ."""
    fill(schema, 10, 5)
    database = schema.info.dbname
    schema.execute(f"ALTER DATABASE {database} SET timezone = 'America/New_York'".encode())
    schema.execute("UPDATE metrics SET timestamp = '0001-01-01 00:00:00+00' WHERE name = 'old'")
    schema.execute("UPDATE activities SET created_at = '-infinity' WHERE activity_type = 'old'")
    done = run.run(plan, "retention")
    assert done["outcome"] == "done", done
    assert (count(schema, "metrics"), count(schema, "activities")) == (5, 5)
