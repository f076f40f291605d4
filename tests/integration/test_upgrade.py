"""pg_upgrade on real clusters: what a copy and a link leave behind, what a kill leaves, and what the checks find.

Both clusters are of the machine's own major, which pg_upgrade accepts: the steps, files and names are those of a
major upgrade.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from provision.database import ask
from provision.errors import HostError
from provision.host.upgrade import after, check, contents, search, side, transfer
from provision.host.upgrade.side import Side
from tests import plans
from tests.clusters import Cluster

BECOME = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
ROWS = 2000
SCHEMA = f"""
CREATE EXTENSION vector;
CREATE TABLE memories (id int PRIMARY KEY, embedding vector(8));
SELECT setseed(0.5);
INSERT INTO memories SELECT n, ARRAY(SELECT random() + n * 0 FROM generate_series(1, 8))::vector
FROM generate_series(1, {ROWS}) n;
CREATE INDEX memories_embedding_idx ON memories USING hnsw (embedding vector_cosine_ops);
ANALYZE memories;
"""
DIGEST = "SELECT count(*) || ' ' || md5(string_agg(id || embedding::text, ',' ORDER BY id)) FROM memories"


class Pair:
    """A cluster with rows, and the place of the one that it becomes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        major = int(cluster.psql("SHOW server_version_num")) // 10000
        self.old = Side(major, cluster.bin, cluster.data, cluster.data)
        self.new = Side(major, cluster.bin, cluster.root / "new", cluster.root / "new")
        self.work = cluster.root / "work"
        with psycopg.connect(cluster.url()) as session:
            self.form = transfer.form(session)

    def make(self) -> None:
        transfer.make(self.new, self.form, self.work, auth="trust")

    def move(self, method: str) -> None:
        self.make()
        transfer.transfer(self.old, self.new, self.work, method, 1)

    def served(self, data: Path, query: str = DIGEST) -> str:
        """Start a cluster as an administrator would, ask it, and stop it."""
        place = f"-p {self.cluster.port} -c listen_addresses= -c unix_socket_directories={self.cluster.host}"
        self.pg_ctl(data, "start", f"--options={place}", f"--log={self.cluster.root}/served.log")
        try:
            return self.cluster.psql(query)
        finally:
            self.pg_ctl(data, "stop", "--mode=fast")

    def pg_ctl(self, data: Path, *words: str) -> None:
        done = self.attempt(data, *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def attempt(self, data: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.cluster.bin / "pg_ctl"), *words, "--wait", f"--pgdata={data}"]
        user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        # A server would keep pipes open.
        with (self.cluster.root / "pg_ctl.log").open("w+") as log:
            done = subprocess.run(command, stdout=log, stderr=log, check=False, cwd="/", **user)  # type: ignore[call-overload]
            log.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, log.read(), "")


@pytest.fixture
def pair() -> Iterator[Pair]:
    cluster = Cluster.create({"max_prepared_transactions": "2", "wal_level": "logical"})
    try:
        cluster.psql(SCHEMA)
        yield Pair(cluster)
    finally:
        cluster.remove()


def test_copy_moves_every_row_and_leaves_the_old_cluster_as_it_was(pair: Pair) -> None:
    rows = pair.cluster.psql(DIGEST)
    pair.cluster.stop()
    pair.move("copy")
    before = side.checkpoint(pair.old)  # pg_upgrade has started the old server itself
    assert before.startswith("shut down at ")
    assert pair.served(pair.new.data, f"DELETE FROM memories WHERE id = 1; {DIGEST}") != rows
    assert (pair.old.linked, side.checkpoint(pair.old)) == (False, before)
    assert pair.served(pair.old.data) == rows
    assert side.checkpoint(pair.old) != before  # a later start shows


def test_link_keeps_the_old_server_from_starting_until_it_is_unsealed(pair: Pair) -> None:
    rows = pair.cluster.psql(DIGEST)
    pair.cluster.stop()
    pair.move("link")
    assert (pair.old.linked, side.checkpoint(pair.old)) == (True, "")
    refused = pair.attempt(pair.old.data, "start")
    assert refused.returncode != 0
    # The new server has not started: the old one is whole.
    side.unseal(pair.old)
    assert pair.served(pair.old.data) == rows


def test_sealed_control_file_stops_every_start_of_the_old_server(pair: Pair) -> None:
    pair.cluster.stop()
    pair.move("link")
    side.unseal(pair.old)
    side.seal(pair.old, control=True)
    assert pair.served(pair.new.data, "INSERT INTO memories VALUES (0) RETURNING id") == "0"
    assert pair.attempt(pair.old.data, "start").returncode != 0
    log = pair.attempt(pair.old.data, "status")
    assert log.returncode == 3, log.stdout


@pytest.mark.faults
@pytest.mark.parametrize("method", ["copy", "link"])
def test_killed_pg_upgrade_is_repeated_without_a_loss(pair: Pair, method: str) -> None:
    rows = pair.cluster.psql(DIGEST)
    pair.cluster.stop()
    for delay in (0.4, 1.2, 2.4):
        pair.make()
        words = ["--link"] if method == "link" else []
        _killed(pair, delay, *words)
        side.stop(pair.old)
        side.stop(pair.new)
        if pair.old.linked:
            side.unseal(pair.old)
        assert side.checkpoint(pair.old).startswith("shut down at ")
    pair.move(method)
    assert pair.served(pair.new.data) == rows


@pytest.mark.parametrize("reaped_after", [0.0, 1.0])
def test_server_that_dies_while_it_is_stopped_is_a_stopped_one(pair: Pair, reaped_after: float) -> None:
    server = pair.cluster.server
    assert server
    server.kill()  # a zombie until its parent, this process, reaps it
    reaper = threading.Timer(reaped_after, server.wait)
    reaper.start()
    begun = time.monotonic()
    side.stop(pair.old)
    assert time.monotonic() - begun < 10
    assert pair.cluster.processes() == []
    assert side.checkpoint(pair.old).startswith("in production at ")
    reaper.join()


def test_slow_last_checkpoint_does_not_fail_pg_upgrade(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCTLTIMEOUT", "1")  # pg_ctl's default is a minute
    rows = pair.cluster.psql(DIGEST)
    pair.cluster.stop()
    frozen = threading.Thread(target=_freeze_checkpointer, args=(pair.old.data, 3.0))
    frozen.start()
    pair.move("copy")
    frozen.join()
    assert pair.served(pair.new.data) == rows


def _freeze_checkpointer(data: Path, seconds: float) -> None:
    """Stop the checkpointer of the server of pg_upgrade, as soon as it runs, for some time."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):
                if link.readlink() == data and b"checkpointer" in (link.parent / "cmdline").read_bytes():
                    os.kill(int(link.parent.name), signal.SIGSTOP)
                    time.sleep(seconds)
                    os.kill(int(link.parent.name), signal.SIGCONT)
                    return
    raise AssertionError("pg_upgrade has started no server")


def _killed(pair: Pair, delay: float, *words: str) -> None:
    """Start pg_upgrade as `transfer` does, and kill what started it and then the rest, but no server."""
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*as_user, "mkdir", "-p", str(pair.work)], check=True)
    places = ("-b", pair.old.programs, "-B", pair.new.programs, "-d", pair.old.configuration, "-D", pair.new.data)
    command = [*as_user, str(pair.new.programs / "pg_upgrade"), *map(str, places), "-U", "postgres", *words]
    with subprocess.Popen(command, cwd=pair.work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        time.sleep(delay)
        program.kill()  # of runuser alone, where this is root: pg_upgrade goes on, as after the kill of our command
    side.end_strays(pair.work)


def test_processes_of_a_killed_upgrade_end_and_an_administrator_beside_them_stays(pair: Pair) -> None:
    pair.make()
    administrator, stray = (subprocess.Popen([*user, "sleep", "60"], cwd=pair.work) for user in ([], BECOME))
    time.sleep(0.5)  # the second one becomes postgres, and then the other program
    side.end_strays(pair.work)
    assert stray.wait(10) == -signal.SIGKILL
    assert (administrator.poll() is None) is (os.geteuid() == 0)
    administrator.kill()
    administrator.wait()


def test_check_beside_the_running_server_names_what_cannot_move(pair: Pair) -> None:
    pair.make()
    assert transfer.check(pair.old, pair.new, pair.work) == []
    pair.cluster.psql("CREATE TABLE odd (what regproc); INSERT INTO odd VALUES ('now')")
    reported = " ".join(transfer.check(pair.old, pair.new, pair.work))
    assert "public.odd.what" in reported, reported
    assert pair.cluster.ready()


def test_failed_upgrade_says_why_and_changes_nothing(pair: Pair) -> None:
    pair.cluster.psql("CREATE TABLE odd (what regproc)")
    pair.cluster.stop()
    before = side.checkpoint(pair.old)
    with pytest.raises(HostError, match="pg_upgrade failed; the old cluster is unchanged") as refused:
        pair.move("link")
    assert "public.odd.what" in refused.value.seen
    assert pair.served(pair.old.data, "SELECT count(*) FROM memories") == str(ROWS)
    assert before.startswith("shut down at ")


def test_blockers_name_prepared_transactions_and_slots(pair: Pair) -> None:
    with psycopg.connect(pair.cluster.url(), autocommit=True) as session:
        assert check.blockers(session) == []
        session.execute("SELECT pg_create_physical_replication_slot('standby')")
        session.execute("BEGIN; INSERT INTO memories VALUES (0); PREPARE TRANSACTION 'transfer 7'")
        found = check.blockers(session)
    assert [each.split(";")[0] for each in found] == [
        "prepared transactions: transfer 7",
        "replication slots do not move: standby (physical)",
    ]


def test_table_with_the_number_of_an_extensions_function_is_compared_too(pair: Pair) -> None:
    plan = plans.sample(server={"socket_directory": pair.cluster.host, "port": pair.cluster.port})
    pair.cluster.psql(
        "SET allow_system_table_mods = on; INSERT INTO pg_depend SELECT 'pg_proc'::regclass, 'memories'::regclass, 0,"
        " 'pg_extension'::regclass, oid, 0, 'e' FROM pg_extension WHERE extname = 'vector'"
    )  # OIDs are unique in each catalog alone, and pg_upgrade keeps those of tables
    assert "r public.memories" in after.contents(plan)["postgres"]
    assert contents.differences(plan, plan) == []
    with psycopg.connect(pair.cluster.url()) as session:
        assert ("memories.id integer not null",) in ask(session, contents.SHAPE)


def test_recall_of_the_index_is_measured_and_its_loss_reported(pair: Pair) -> None:
    plan = plans.sample(server={"socket_directory": pair.cluster.host, "port": pair.cluster.port})
    (found,) = search.measure(plan, "postgres")
    assert (found.index, found.probes, found.used) == ("public.memories_embedding_idx", 10, True)
    assert found.recall > 0.8
    before = search.as_facts([found])
    assert search.differences(before, search.measure(plan, "postgres")) == []
    pair.cluster.psql("DROP INDEX memories_embedding_idx")
    assert search.differences(before, search.measure(plan, "postgres")) == ["public.memories_embedding_idx is missing"]
