"""Upgrades of databases that are hard to move, on a disk that fills up, and two of them at once."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from provision.errors import HostError
from provision.host.backup.journal import held
from provision.host.upgrade import check, journal, logical, replication, run
from provision.plan.schema import Plan
from tests.upgrades import DIGEST, SCHEMA, Loopback, begin, finished, loopback, returned

LONG = "Q" * 61 + '"s'
"""A name of 63 bytes, the most that PostgreSQL keeps, which must be quoted."""
ODD = f"""
CREATE SEQUENCE "{LONG.replace('"', '""')}" START 41;
SELECT nextval('"{LONG.replace('"', '""')}"');
CREATE TABLE parts (at date NOT NULL, n int, half numeric GENERATED ALWAYS AS (n / 2.0) STORED, PRIMARY KEY (at, n))
  PARTITION BY RANGE (at);
CREATE TABLE parts_old PARTITION OF parts FOR VALUES FROM ('2000-01-01') TO ('2020-01-01');
CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
CREATE INDEX ON parts (half);
INSERT INTO parts SELECT date '2010-01-01' + n * 30, n FROM generate_series(1, 300) n;
CREATE TABLE keyless (a text, b int[]);
INSERT INTO keyless SELECT 'row ' || n, ARRAY[n, NULL] FROM generate_series(1, 50) n;
CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY, said text);
INSERT INTO scratch SELECT 1, 'not for long';
TRUNCATE scratch;
CREATE SCHEMA evil;
CREATE TABLE evil.called (by text);
CREATE FUNCTION evil.count(anyelement) RETURNS bigint LANGUAGE plpgsql AS
  'BEGIN INSERT INTO evil.called VALUES (''count by '' || session_user); RETURN 0; END';
CREATE FUNCTION evil.pg_table_size(oid) RETURNS bigint LANGUAGE plpgsql AS
  'BEGIN INSERT INTO evil.called VALUES (''size by '' || session_user); RETURN 0; END';
CREATE FUNCTION evil.to_regclass(text) RETURNS regclass LANGUAGE plpgsql AS
  'BEGIN INSERT INTO evil.called VALUES (''regclass by '' || session_user); RETURN NULL; END';
CREATE FUNCTION evil.equal(text, text) RETURNS boolean LANGUAGE plpgsql AS
  'BEGIN INSERT INTO evil.called VALUES (''= by '' || session_user); RETURN true; END';
CREATE OPERATOR evil.= (leftarg = text, rightarg = text, procedure = evil.equal);
ALTER ROLE postgres SET search_path = evil, public, pg_catalog;
ALTER DATABASE minion SET search_path = evil, public, pg_catalog;
"""
FOUND = """
SELECT (SELECT pg_catalog.count(*) || md5(string_agg(p::text, ',' ORDER BY at, n)) FROM public.parts p),
  (SELECT pg_catalog.count(*) || md5(string_agg(k::text, ',' ORDER BY k::text)) FROM public.keyless k)
"""
CALLED = "SELECT by FROM evil.called"


@pytest.mark.parametrize("method", ["copy", "logical"])
def test_odd_objects_move_both_ways_and_no_function_of_users_is_called(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    sequence = LONG.replace('"', '""')
    with loopback(monkeypatch, 0, SCHEMA + ODD, method) as made:
        begin(made)
        if method == "logical":
            made.do(
                "UPDATE public.parts SET at = '2015-05-05' WHERE n = 299",  # into another partition
                "UPDATE public.keyless SET b = '{7}' WHERE a OPERATOR(pg_catalog.=) 'row 9'",
                "DELETE FROM public.keyless WHERE a OPERATOR(pg_catalog.=) 'row 8'",
            )
            rows = made.ask(made.old_plan, FOUND)
        else:
            made.old_server.start()
            rows = made.ask(made.old_plan, FOUND)
        finished(made)
        assert made.ask(made.new_plan, FOUND) == rows
        assert made.ask(made.new_plan, f"SELECT nextval('public.\"{sequence}\"')") == [(42,)]
        assert made.ask(made.new_plan, CALLED) == []
        made.ask(made.new_plan, "UPDATE public.parts SET n = n + 1000, at = '2030-01-01' WHERE n < 20 RETURNING 1")
        later = made.ask(made.new_plan, FOUND)
        returned(made)
        assert made.ask(made.old_plan, FOUND) == (later if method == "logical" else rows)
        value = 43 if method == "logical" else 42
        assert made.ask(made.old_plan, f"SELECT nextval('public.\"{sequence}\"')") == [(value,)]
        assert made.ask(made.old_plan, CALLED) == []


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """An upgrade by logical replication whose rows are copied."""
    with loopback(monkeypatch, 0, SCHEMA) as made:
        begin(made)
        logical.copy(made)
        yield made


@pytest.mark.parametrize(
    ("late", "end", "said"),
    [
        ("SELECT lo_from_bytea(7, 'late')", "SELECT lo_unlink(7)", "1 large objects, which do not replicate"),
        ("BEGIN; INSERT INTO log VALUES ('late'); PREPARE TRANSACTION 'late'", "COMMIT PREPARED 'late'",
         "prepared transactions: late"),
    ],
)  # fmt: skip
def test_what_appears_after_the_check_stops_the_hand_over_and_is_not_lost(
    copied: Loopback, late: str, end: str, said: str
) -> None:
    alone(copied.old_plan, late)
    with pytest.raises(HostError) as refused:
        logical.move(copied)
    assert said in refused.value.seen
    assert "the old server serves again" in refused.value.run
    alone(copied.old_plan, end)
    finished(copied)
    expected = 1 if "INSERT" in late else 0
    assert copied.ask(copied.new_plan, "SELECT count(*) FROM log WHERE said = 'late'") == [(expected,)]
    alone(copied.new_plan, late)
    with pytest.raises(HostError) as stays:
        returned(copied)
    assert said in stays.value.seen
    alone(copied.new_plan, end)
    returned(copied)
    assert copied.ask(copied.old_plan, "SELECT count(*) FROM log WHERE said = 'late'") == [(2 * expected,)]


def alone(plan: Plan, statements: str) -> None:
    """Run each statement alone: COMMIT PREPARED refuses a transaction block."""
    with psycopg.connect(plan.server.url("minion"), autocommit=True) as session:
        for each in statements.split("; "):
            session.execute(each.encode())


def test_long_transaction_is_named_while_the_copy_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replication, "LONG_S", 0)
    with loopback(monkeypatch, 0, SCHEMA) as made:
        begin(made)
        with psycopg.connect(made.url) as session:
            session.execute("INSERT INTO log VALUES ('from a long transaction')")
            end = threading.Timer(3, session.commit)
            end.start()
            begun = time.monotonic()
            finished(made)
            assert time.monotonic() - begun > 3
            assert (
                f"waits for the end of the transaction of process {session.info.backend_pid}" in capsys.readouterr().out
            )
        assert made.ask(made.new_plan, "SELECT count(*) FROM log WHERE said LIKE 'from a long%'") == [(1,)]


def test_check_beside_an_upgrade_leaves_its_new_cluster(copied: Loopback) -> None:
    with pytest.raises(HostError, match="an upgrade of this host has begun"):
        run.judge(copied)
    with held(journal.NAME, "of this test"), pytest.raises(HostError) as refused:
        run.judge(copied)
    assert "an upgrade is running on this host" in str(refused.value)
    assert refused.value.run == "wait until it ends; provision upgrade status"
    finished(copied)


@contextmanager
def small_disk(monkeypatch: pytest.MonkeyPatch, megabytes: int, method: str) -> Iterator[tuple[Loopback, Path]]:
    """Make an upgrade on a disk of its own, and give the file that fills it."""
    root = Path(tempfile.mkdtemp(prefix="provision-upgrade-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", root], check=True)
    try:
        with loopback(monkeypatch, 0, SCHEMA, method, root=root) as made:
            yield made, root / "filler"
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
        root.rmdir()


def repeated(made: Loopback, filler: Path) -> None:
    """Assert that the old server takes writes, and that the command, repeated with space on the disk, keeps them."""
    made.ask(made.old_plan, "INSERT INTO log VALUES ('after the failure') RETURNING 1")
    filler.unlink()
    rows = made.ask(made.old_plan, DIGEST)
    begin(made)
    finished(made)
    assert made.ask(made.new_plan, DIGEST) == rows


def fill(filler: Path, leave_mb: int) -> None:
    free = shutil.disk_usage(filler.parent).free // 2**20
    subprocess.run(["fallocate", "--length", f"{free - leave_mb}M", filler], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("leave_mb", [0, 5, 12])
def test_full_disk_ends_a_copy_and_the_old_server_serves(monkeypatch: pytest.MonkeyPatch, leave_mb: int) -> None:
    with small_disk(monkeypatch, 700, "copy") as (made, filler):
        rows = made.ask(made.old_plan, DIGEST)
        begin(made)
        fill(filler, leave_mb)
        with pytest.raises(HostError) as failed:
            finished(made)
        assert "the old server serves again; repeat the command once it is resolved" in failed.value.run
        assert journal.state(journal.read()) == journal.PREPARED
        assert made.ask(made.old_plan, DIGEST) == rows
        repeated(made, filler)


@pytest.mark.faults
def test_nearly_full_disk_ends_a_replication_before_the_old_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(monkeypatch, 900, "logical") as (made, filler):
        begin(made)
        fill(filler, check.LEAST_MB - 50)
        with pytest.raises(HostError, match="the disk is nearly full: the copy was ended and deleted"):
            finished(made)
        assert journal.state(journal.read()) == journal.PREPARED
        assert made.ask(made.old_plan, "SELECT count(*) FROM pg_replication_slots") == [(0,)]
        repeated(made, filler)
