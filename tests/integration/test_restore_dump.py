"""A restore of a dump never loses the live database: whatever its name, whatever the dump, wherever it is killed.

The restore runs in a process of its own, which really kills itself with SIGKILL before or after one of its statements.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from provision import system
from provision.checks import host, reach
from provision.database import Connection, connect, identifier
from provision.errors import ProvisionError, UsageError
from provision.host import scratch
from provision.host.backup import dump, exchange, load
from provision.host.backup.tool import BackupError
from provision.plan import names
from provision.plan.schema import Plan
from tests.clusters import Cluster
from tests.plans import sample, write
from tests.until import until

ROWS = 1000
KILLED = """
import getpass, json, os, signal, sys
from pathlib import Path
import psycopg
from provision import system
from provision.host.backup import load
from provision.plan import load as plans
system.EVIDENCE, system.POSTGRES = Path(sys.argv[2]), getpass.getuser()
at, when = int(sys.argv[4]), sys.argv[5]
count, execute = 0, psycopg.Connection.execute
def killing(self, query, *arguments, **named):
    global count
    text = query if isinstance(query, str) else query.decode() if isinstance(query, bytes) else query.as_string(self)
    ours = text.startswith(("CREATE", "ALTER", "DROP", "SELECT pg_terminate", "GRANT", "REVOKE"))
    count += ours
    if ours and count == at and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    found = execute(self, query, *arguments, **named)
    if ours and count == at and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return found
psycopg.Connection.execute = killing
print(json.dumps(load.load(plans.load(Path(sys.argv[1])), "", "", sys.argv[3]), default=str))
"""


@pytest.fixture
def plan(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """A plan of the cluster, with evidence and dumps in a folder."""
    evidence, dumps = tmp_path / "evidence", tmp_path / "dumps"
    evidence.mkdir()
    dumps.mkdir()
    # The test's user may not reach another user's Python, and authentication is trust.
    monkeypatch.setattr(system, "POSTGRES", getpass.getuser())
    monkeypatch.setattr(system, "EVIDENCE", evidence)
    found = sample(
        server={
            "major": int(cluster.psql("SHOW server_version_num")) // 10000,
            "port": cluster.port,
            "socket_directory": cluster.host,
            "data_directory": str(cluster.data),
        },
        backup={"dump_directory": str(dumps), "processes": 1},
    )
    write(evidence / "plan.json", found)
    before = set(databases(cluster))
    yield found
    for name in set(databases(cluster)) - before:
        cluster.psql(f"DROP DATABASE {identifier(name)} WITH (FORCE)")


def databases(cluster: Cluster) -> list[str]:
    with connect(cluster.url(), application="test") as session:
        return [str(row[0]) for row in session.execute("SELECT datname FROM pg_database")]


@contextlib.contextmanager
def live(cluster: Cluster, name: str) -> Iterator[str]:
    """A database of `minion` with rows, one more of them than its dump will have."""
    cluster.psql(f"CREATE DATABASE {identifier(name)} OWNER minion")
    try:
        with connect(cluster.url(name), application="test") as session:
            session.execute("CREATE TABLE here AS SELECT n FROM generate_series(1, 1000) n")
        yield name
    finally:
        cluster.psql(f"DROP DATABASE IF EXISTS {identifier(name)} WITH (FORCE)")


def rows(cluster: Cluster, name: str) -> int:
    with connect(cluster.url(name), application="test") as session:
        row = session.execute("SELECT count(*) FROM here").fetchone()
    assert row
    return int(str(row[0]))


def add_one(cluster: Cluster, name: str) -> None:
    with connect(cluster.url(name), application="test") as session:
        session.execute("INSERT INTO here VALUES (0)")


def damage(plan: Plan) -> None:
    """Change a byte in the newest dump, whose manifest then does not match."""
    path = next(each for each in (dump.pick(plan, "") / "data").iterdir() if each.name != "toc.dat")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


NAMES = [
    "a" * 63,
    "é" * 31,
    "O'Brien",
    "postgresql://x",
    *(
        pytest.param(name, marks=pytest.mark.faults)
        for name in ("a" * 62, "_app", "Sales Data", "jan.kowalski@corp.com", "a=b %c")
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_live_database_is_exchanged_whatever_its_name(cluster: Cluster, plan: Plan, name: str) -> None:
    assert names.problem(name) == ""
    with live(cluster, name):
        taken = dump.take(plan, name)
        add_one(cluster, name)
        found = load.load(plan, taken["label"], "", name)
        assert (rows(cluster, name), rows(cluster, found["kept"])) == (ROWS, ROWS + 1)
        assert len(found["kept"].encode()) <= 63
        assert dump.expire(plan, name) == []
        assert not [each for each in databases(cluster) if names.SCRATCH.fullmatch(each)]
        with pytest.raises(UsageError, match="the target database already exists"):
            load.load(plan, "", name, "")
        assert load.load(plan, "", f"{name[:40]}2", "")["kept"] == ""
        assert rows(cluster, f"{name[:40]}2") == ROWS


@pytest.mark.parametrize("name", ["a" * 63, "a" * 62, "O'Brien", "_app"])
def test_damaged_dump_changes_nothing(cluster: Cluster, plan: Plan, name: str) -> None:
    with live(cluster, name):
        dump.take(plan, name)
        add_one(cluster, name)
        damage(plan)
        before = sorted(databases(cluster))
        with pytest.raises(BackupError, match="this dump is damaged"):
            load.load(plan, "", "", name)
        assert (rows(cluster, name), sorted(databases(cluster))) == (ROWS + 1, before)


def test_dump_that_fails_halfway_changes_nothing(cluster: Cluster, plan: Plan) -> None:
    name = "a" * 63
    with live(cluster, name):
        with connect(cluster.url(name), application="test") as session:
            session.execute("CREATE ROLE transient; GRANT SELECT ON here TO transient")
            dump.take(plan, name)
            session.execute("REVOKE ALL ON here FROM transient; DROP ROLE transient")
        before = sorted(databases(cluster))
        with pytest.raises(BackupError, match="the dump could not be restored"):
            load.load(plan, "", "", name)
        assert (rows(cluster, name), sorted(databases(cluster))) == (ROWS, before)
        assert exchange.unfinished() == ""


def run_killed(name: str, at: int, when: str) -> subprocess.CompletedProcess[str]:
    words = (str(system.EVIDENCE / "plan.json"), str(system.EVIDENCE), name, str(at), when)
    return subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.faults)])
def test_live_database_survives_a_kill_at_each_change(cluster: Cluster, plan: Plan, when: str) -> None:
    name = "a" * 63
    with live(cluster, name):
        dump.take(plan, name)
        add_one(cluster, name)
        stages = 0
        while True:
            stages += 1
            assert stages < 60
            before = set(databases(cluster))
            done = run_killed(name, stages, when)
            if done.returncode == 0:
                break
            assert done.returncode == -9, done.stderr
            added = set(databases(cluster)) - before
            left = exchange.unfinished()
            with connect(cluster.url(), application="test") as session:
                cleaned = exchange.clean_up(session)
                assert exchange.clean_up(session) == []
            assert bool(left) == bool(cleaned) or "closed" in left or "scratch" in left
            kept = [each for each in added if "_before_" in each]
            # The old database has all its rows, under its own name or the one that the restore reports.
            assert rows(cluster, kept[0] if kept else name) == ROWS + 1
            assert rows(cluster, name) == (ROWS if kept else ROWS + 1)
            assert not [each for each in databases(cluster) if names.SCRATCH.fullmatch(each)]
            if kept:
                cluster.psql(f"DROP DATABASE {identifier(name)}")
                cluster.psql(f"ALTER DATABASE {identifier(kept[0])} RENAME TO {identifier(name)}")
        assert stages > 6  # every change was one to be killed at
        assert rows(cluster, name) == ROWS
        assert rows(cluster, json.loads(done.stdout)["kept"]) == ROWS + 1


def test_next_dump_or_restore_reopens_a_database_that_a_kill_closed(cluster: Cluster, plan: Plan) -> None:
    with live(cluster, "closed"):
        dump.take(plan, "closed")
        add_one(cluster, "closed")
        for at in range(1, 60):
            assert run_killed("closed", at, "after").returncode == -9
            if exchange.unfinished().endswith("database closed closed to connections"):
                break
        with pytest.raises(ProvisionError, match="cannot connect") as refused:
            rows(cluster, "closed")
        found = reach.explain(refused.value.seen, cluster.url("closed"))
        assert found.id == "reach-closed-database"
        assert "psql -d postgres -c 'ALTER DATABASE \"closed\" ALLOW_CONNECTIONS true'" in found.fix
        (seen,) = host.restored_dump(plan)
        assert str(seen).startswith("a restore of a dump was killed: scratch database closed_restoring_")
        dump.take(plan, "closed")
        assert (rows(cluster, "closed"), exchange.unfinished(), list(host.restored_dump(plan))) == (ROWS + 1, "", [])


def test_restore_that_is_killed_while_rows_are_loaded_leaves_nothing(cluster: Cluster, plan: Plan) -> None:
    with live(cluster, "slow"):
        with connect(cluster.url("slow"), application="test") as session:
            session.execute("SET test.sleep = 0")
            session.execute(
                "CREATE FUNCTION public.slow(n int) RETURNS int IMMUTABLE LANGUAGE sql AS"
                " $$ SELECT n FROM (SELECT pg_sleep(coalesce(current_setting('test.sleep', true), '2')::float)) s $$"
            )
            session.execute("CREATE TABLE one AS SELECT 1 AS n")
            session.execute("CREATE INDEX ON one (public.slow(n))")
        dump.take(plan, "slow")
        add_one(cluster, "slow")
        words = (str(system.EVIDENCE / "plan.json"), str(system.EVIDENCE), "slow", "0", "")
        with subprocess.Popen([sys.executable, "-c", KILLED, *words], stderr=subprocess.DEVNULL) as restore:
            building = "SELECT count(*) FROM pg_stat_activity WHERE datname ~ '^slow_rest' AND query ~ 'INDEX'"
            assert until(lambda: cluster.psql(building) != "0" or restore.poll() is not None, 60)
            assert restore.poll() is None
            restore.kill()
        assert exchange.unfinished().startswith("scratch database slow_restoring_")
        with connect(cluster.url(), application="test") as session:
            removed = [each.split(" slow_restoring_")[0] for each in exchange.clean_up(session)]
        assert removed == ["scratch database", "role"]  # the login that loads the rows
        assert rows(cluster, "slow") == ROWS + 1
        assert not [each for each in databases(cluster) if names.SCRATCH.fullmatch(each)]


def test_only_a_database_with_the_same_oid_is_dropped(cluster: Cluster, plan: Plan) -> None:
    del plan
    with connect(cluster.url(), application="test") as session:
        made = scratch.create(session, names.scratch("minion", "restoring"))
        aside = f"{made.name[:30]}_aside"
        session.execute(f"ALTER DATABASE {made.name} RENAME TO {aside}".encode())
        other = scratch.create(session, made.name)
        assert not scratch.drop(session, made)
        assert {made.name, aside} <= set(databases(cluster))
        assert scratch.drop(session, other)
        assert not scratch.drop(session, other)
        with pytest.raises(ProvisionError, match="not a scratch database"):
            scratch.drop(session, scratch.Scratch("postgres", 5))


def test_scratch_template_and_role_are_dropped(cluster: Cluster, plan: Plan) -> None:
    del plan
    with connect(cluster.url(), application="test") as session:
        made = scratch.create(session, names.scratch("minion", "restoring"))
        session.execute(f"ALTER DATABASE {made.name} IS_TEMPLATE true".encode())
        assert scratch.drop(session, made)
        assert made.name not in databases(cluster)
        session.execute(f"CREATE ROLE {made.name} LOGIN PASSWORD 'left by a killed run'".encode())
        assert scratch.drop_role(session, made.name)
        assert session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (made.name,)).fetchone() is None
        assert not scratch.drop_role(session, made.name)


def test_prepared_transaction_leaves_the_old_database_in_use(cluster: Cluster, plan: Plan) -> None:
    with live(cluster, "in_use"):
        dump.take(plan, "in_use")
        with psycopg.connect(cluster.url(), autocommit=True) as session:
            made = scratch.create(session, names.scratch("in_use", "restoring"))
            gone = scratch.Scratch(made.name, made.oid + 1)
            with exchange.begun(session, "in_use") as restore, pytest.raises(BackupError, match="it is unchanged"):
                restore.swap(gone, "in_use")
            scratch.drop(session, made)
        assert rows(cluster, "in_use") == ROWS


def test_disk_that_is_full_does_not_keep_the_scratch_database(
    cluster: Cluster, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    del plan
    with connect(cluster.url(), application="test") as session:
        name = names.scratch("minion", "restoring")
        with pytest.raises(BackupError, match="the restore of the dump ended early") as error:
            restore_without_a_journal(session, name, monkeypatch)
        assert "Not a directory" in error.value.seen
        assert scratch.find(session, name) is None


def restore_without_a_journal(session: Connection, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with exchange.begun(session, "minion") as restore:
        made = restore.create(name)
        monkeypatch.setattr(system, "EVIDENCE", Path("/dev/full/evidence"))  # no journal can be written there
        restore.note(closed=made.oid)


def test_connection_that_is_lost_ends_the_restore_with_its_cure(cluster: Cluster, plan: Plan) -> None:
    del plan
    with connect(cluster.url(), application="test") as session:
        pid = session.info.backend_pid
        with pytest.raises(BackupError, match="the restore of the dump ended early") as error:
            lose_the_connection(cluster, session, pid)
    assert error.value.run.startswith("provision restore clean-up")
    assert exchange.unfinished().startswith("scratch database minion_restoring_")
    with connect(cluster.url(), application="test") as session:
        assert len(exchange.clean_up(session)) == 1


def lose_the_connection(cluster: Cluster, session: Connection, pid: int) -> None:
    with exchange.begun(session, "minion") as restore:
        restore.create(names.scratch("minion", "restoring"))
        cluster.psql(f"SELECT pg_terminate_backend({pid})")
        session.execute("SELECT 1")


def test_journal_of_another_cluster_drops_nothing_and_is_forgotten(cluster: Cluster, plan: Plan) -> None:
    del plan
    with connect(cluster.url(), application="test") as session:
        made = scratch.create(session, names.scratch("minion", "restoring"))
        system.keep(exchange.JOURNAL, {"system": "1", "scratch": made.name, "oid": made.oid, "closed": made.oid})
        assert exchange.unfinished()
        assert exchange.clean_up(session) == ["the journal of a restore into another cluster removed"]
        assert exchange.unfinished() == ""
        assert scratch.drop(session, made)
