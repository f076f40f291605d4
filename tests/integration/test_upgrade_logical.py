"""An upgrade by logical replication between two real servers: rows, sequences, the way back, kills, and refusals.

Both servers are of the machine's own major and are started by pg_ctl instead of systemd; the steps are those of a
major upgrade. tests/system/test_upgrade.py upgrades a host from 15 to 17.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from provision.errors import HostError
from provision.host.upgrade import back, commands, contents, demands, journal, replication, run
from provision.plan import load
from tests.until import until
from tests.upgrades import DIGEST, ROWS, SCHEMA, Loopback, begin, finished, loopback, returned

WRITES = (
    "INSERT INTO memories (embedding, note) SELECT ARRAY(SELECT random() FROM generate_series(1, 8))::vector, 'new'",
    "UPDATE memories SET note = 'again', embedding = embedding WHERE id = 1 + floor(random() * 1000)::int",
    "DELETE FROM acme.events WHERE id = (SELECT min(id) FROM acme.events WHERE id > 1)",
    "INSERT INTO log VALUES (clock_timestamp()::text); UPDATE log SET said = said || '!' WHERE said = 'line 7'",
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    with loopback(monkeypatch, 0, SCHEMA) as upgrade:
        yield upgrade


class Writers:
    """Clients that write until they are stopped; `done` counts what the server acknowledged."""

    def __init__(self, url: str, number: int = 2) -> None:
        self.url, self.done, self.over = url, 0, threading.Event()
        self.threads = [threading.Thread(target=self._write, daemon=True) for _ in range(number)]

    def __enter__(self) -> Writers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def _write(self) -> None:
        while not self.over.is_set():
            try:
                with psycopg.connect(self.url, autocommit=True) as session:
                    while not self.over.is_set():
                        for write in WRITES:
                            session.execute(write.encode())
                            self.done += 1
                        time.sleep(0.01)
            except psycopg.Error:
                time.sleep(0.05)


def test_copy_and_hand_over_under_writes_keep_every_row_and_go_back_with_all(made: Loopback) -> None:
    with Writers(made.url) as writers:
        begin(made)
        finished(made)
        before = writers.done
        assert before > 20
        assert until(lambda: writers.done >= before + 1000, 60)
        assert load.load() == made.new_plan
    rows = made.ask(made.new_plan, DIGEST)
    replication.settle(made.new_plan, made.old_server.here, most=0, show=print)
    assert made.ask(made.old_server.here, DIGEST) == rows
    with Writers(made.url, 1):
        returned(made)
    assert load.load() == made.old_plan
    assert made.new.running is False
    ((kept,),) = made.ask(made.old_plan, "SELECT count(*) FROM log WHERE said LIKE '20%'")
    assert kept
    ((last, highest),) = made.ask(made.old_plan, "SELECT nextval('memories_id_seq'), (SELECT max(id) FROM memories)")
    assert int(str(last)) > int(str(highest))
    left = "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication)"
    assert made.ask(made.old_plan, left) == [(0, 0)]
    assert made.ask(made.old_plan, "SELECT relreplident FROM pg_class WHERE relname = 'log'") == [("d",)]


def test_rows_of_the_new_server_are_those_of_the_old_one(made: Loopback) -> None:
    rows = made.ask(made.old_plan, DIGEST)
    begin(made)
    finished(made)
    assert made.ask(made.new_plan, DIGEST) == rows
    assert made.ask(made.new_plan, "SELECT nextval('memories_id_seq'), n FROM notes") == [(ROWS + 51, ROWS)]
    back.release(made, commands.word(made.new_plan))
    assert not made.old.data.exists()
    left = "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication)"
    assert made.ask(made.new_plan, left) == [(0, 0)]
    assert made.ask(made.new_plan, "SELECT relreplident FROM pg_class WHERE relname = 'log'") == [("d",)]


@pytest.mark.faults
def test_old_server_of_14_receives_what_the_new_one_has_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "CREATE DATABASE minion; \\connect minion\nCREATE TABLE log (id bigserial PRIMARY KEY, said text)"
    with loopback(monkeypatch, 14, plain) as upgrade:
        upgrade.do("INSERT INTO log (said) SELECT 'line ' || n FROM generate_series(1, 100) n")
        begin(upgrade)
        finished(upgrade)
        assert upgrade.ask(upgrade.new_plan, "SELECT current_setting('server_version_num')::int > 150000") == [(True,)]
        upgrade.ask(upgrade.new_plan, "UPDATE log SET said = 'new' WHERE id <= 10 RETURNING 1")
        returned(upgrade)
        assert upgrade.ask(upgrade.old_plan, "SELECT count(*), sum((said = 'new')::int) FROM log") == [(100, 10)]


@pytest.mark.parametrize("method", ["copy", "logical"])
def test_schema_that_the_new_major_cannot_have_is_found_by_the_check(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    schema = "CREATE DATABASE minion; \\connect minion\nCREATE VIEW backups AS SELECT pg_is_in_backup()"
    with loopback(monkeypatch, 14, schema) as upgrade:
        upgrade.method = method
        with pytest.raises(HostError) as refused:
            run.judge(upgrade)
        assert "cannot create the roles and schemas of this host; the old server serves" in refused.value.what
        assert "function pg_is_in_backup() does not exist" in refused.value.seen
        upgrade.do("DROP VIEW backups")
        contents.rehearse(upgrade.old_server, upgrade.new_server)


def killed(upgrade: Loopback, work: Callable[[Loopback], None], state: str, delay: float) -> None:
    """Run a command in a process of its own, and kill it some time after it has written a state."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(upgrade,))
    process.start()
    deadline = time.monotonic() + 60
    while journal.state(journal.read()) != state and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    assert process.is_alive(), f"the command ended before {state} and {delay} s"
    os.kill(int(process.pid or 0), signal.SIGKILL)
    process.join()
    time.sleep(0.2)  # a child of it that is about to become another program still holds the lock


@pytest.mark.parametrize(
    ("state", "delay"),
    [
        (journal.COPYING, 0.5), (journal.STOPPED, 0.0), (journal.STOPPED, 0.4), (journal.TRANSFERRED, 0.0),
        (journal.STARTED, 0.0), (journal.STARTED, 0.2), (journal.SERVING, 0.0),
    ],
)  # fmt: skip
@pytest.mark.faults
def test_killed_upgrade_continues_or_goes_back(made: Loopback, state: str, delay: float) -> None:
    begin(made)
    killed(made, finished, state, delay)
    made.facts = journal.read()
    if delay:
        returned(made)
        assert made.ask(made.old_plan, "SELECT count(*) FROM memories") == [(ROWS,)]
        return
    finished(made)
    assert made.ask(made.new_plan, "SELECT count(*) FROM memories") == [(ROWS,)]
    made.ask(made.new_plan, "INSERT INTO log VALUES ('last') RETURNING 1")
    returned(made)
    assert made.ask(made.old_plan, "SELECT count(*) FROM log WHERE said = 'last'") == [(1,)]


@pytest.mark.parametrize(
    ("state", "delay"),
    [(journal.RETURNING, 0.0), (journal.RETURNING, 0.4), (journal.RETURNED, 0.0), (journal.RETURNED, 0.2)],
)
@pytest.mark.faults
def test_killed_rollback_is_repeated_without_a_loss(made: Loopback, state: str, delay: float) -> None:
    begin(made)
    finished(made)
    made.ask(made.new_plan, "INSERT INTO log VALUES ('last') RETURNING 1")
    killed(made, returned, state, delay)
    with pytest.raises(HostError, match="a rollback has not finished"):
        run.run(made, commands.word(made.new_plan))
    returned(made)
    assert made.ask(made.old_plan, "SELECT count(*) FROM log WHERE said = 'last'") == [(1,)]


def test_changed_schema_stops_the_hand_over_and_the_old_server_serves(made: Loopback) -> None:
    begin(made)
    made.do("ALTER TABLE log ADD COLUMN extra int")
    made.do("ALTER ROLE minion PASSWORD 'another secret'")
    with pytest.raises(HostError, match="roles or schemas have changed since the copy began") as refused:
        finished(made)
    assert "extra integer" in refused.value.seen
    assert "SCRAM" not in refused.value.seen
    assert made.ask(made.old_plan, "INSERT INTO log VALUES ('still') RETURNING 1") == [(1,)]
    returned(made)


def test_what_does_not_replicate_is_refused(made: Loopback) -> None:
    assert demands.problems(made.old_plan, made.new_plan) == []
    made.ask(made.old_plan, "SELECT lo_create(0)")
    made.do("CREATE UNLOGGED TABLE cache AS SELECT 1 AS n")
    made.do("CREATE TABLE odd (what json)")
    made.do("CREATE FUNCTION good(text) RETURNS bool LANGUAGE sql RETURN true")
    made.do("ALTER TABLE log ADD CHECK (good(said))")
    made.do("ALTER DATABASE minion SET statement_timeout = '5s'")
    with psycopg.connect(made.url, options="-c search_path=pg_catalog") as session:
        found = demands.of_database(session, (15, 17))
    assert [each.split(";")[0] for each in found] == [
        "1 large objects, which do not replicate: use upgrade_method copy or link",
        "unlogged tables with rows, which do not replicate: public.cache",
        "tables without a primary key and with a type that has no equality: public.odd json",
        "functions that PostgreSQL 15 would call as superuser for each replicated row: constraint "
        "log_said_check on table public.log calls public.good(text)",
        "stored settings that redirect or end its sessions: statement_timeout",
    ]


def test_settings_and_forced_policies_are_refused_with_the_way_to_change_them(made: Loopback) -> None:
    values = {"wal_level": "replica", "max_replication_slots": "2", "max_wal_senders": "10"}
    (said,) = demands.settings(made.old_plan, values, 6, "the old server has")
    assert said.startswith(
        "the old server has wal_level = replica, max_replication_slots = 2: add postgresql_settings: {wal_level: "
        "logical, max_replication_slots: 6} to the inventory"
    )
    assert "-e postgresql_restart_allowed=true" in said
    made.do("ALTER TABLE log FORCE ROW LEVEL SECURITY")
    with psycopg.connect(made.url) as session:
        assert demands.of_database(session, (14, 15)) == []
        (forced,) = demands.of_database(session, (15, 17))
    assert "as whom PostgreSQL 17 applies changes: log;" in forced
    assert demands.settings(made.old_plan, {**values, "wal_level": "logical"}, 2, "the old server has") == []
