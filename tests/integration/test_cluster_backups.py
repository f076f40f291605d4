"""Backups of a cluster by pgBackRest: one stanza, switchovers, a lost primary, and a restore test on another member."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters import as_server_user
from tests.members import DATABASE, FOLLOW, STANZA, Host, Members, running

HOLD = """
import fcntl, os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
path.parent.mkdir(parents=True, exist_ok=True)
while True:
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
        break  # pgBackRest removes the file when it releases the lock
print("held", flush=True)
time.sleep(float(sys.argv[2]))
path.unlink()
"""


@pytest.fixture(scope="module")
def members() -> Iterator[Members]:
    with running(archive=True) as found:
        with found.superuser(found.leader(), DATABASE) as session:
            session.execute("CREATE TABLE kept (id int PRIMARY KEY, at timestamptz DEFAULT now())")
        with archiving(found.leader(), seconds=3):
            backup(found.leader(), "prepare")
        taken = backup(found.leader(), "take", "--type", "full")
        assert taken["kind"] == "full"
        yield found


@contextlib.contextmanager
def archiving(host: Host, seconds: float) -> Iterator[None]:
    """Hold the stanza's lock, as asynchronous archiving does while it pushes WAL; the block must outlast it."""
    program = [sys.executable, "-c", HOLD, str(host.home / "backup" / "lock" / f"{STANZA}-archive.lock"), str(seconds)]
    with subprocess.Popen(as_server_user(*program), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        assert holder.poll() == 0, "the command did not wait for the lock"


def backup(host: Host, *words: str) -> Any:
    done = host.provision("backup", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write(members: Members, count: int) -> int:
    """Add rows and end their WAL segment; return the number of all rows."""
    with members.superuser(members.leader(), DATABASE) as session:
        query = "INSERT INTO kept SELECT m.at + i FROM generate_series(1, %s) i,"
        session.execute(query.encode() + b" (SELECT coalesce(max(id), 0) AS at FROM kept) m", [count])
        session.execute("SELECT pg_switch_wal()")
        (row,) = session.execute("SELECT count(*)::int FROM kept")
        return int(row[0])


def switch(members: Members) -> None:
    done = members.hosts["db3"].provision("cluster", "switchover", "--to", members.candidate().name)
    assert done.returncode == 0, done.stderr
    members.until(members.complete, 60, "not complete after the switchover")


def archived(members: Members) -> dict[str, Any]:
    """Return the primary's status of backups, once everything that is written is archived."""
    host = members.leader()
    with members.superuser(host) as session:
        (row,) = session.execute("SELECT pg_walfile_name(pg_switch_wal())")

    def there() -> bool:
        with members.superuser(host) as again:
            query = b"SELECT last_archived_wal >= %s FROM pg_stat_archiver"
            return again.execute(query, row).fetchone() == (True,)

    members.until(there, 60, f"{row[0]} is not archived")
    done = host.provision("backup", "status", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def of_wal(status: dict[str, Any]) -> list[str]:
    return [text for text in status["alarms"] if "WAL" in text or "archiv" in text or "set " in text]


def test_archive_and_backups_go_on_after_a_switchover(members: Members) -> None:
    write(members, 100)
    before = backup(members.leader(), "take", "--type", "incr")
    switch(members)
    write(members, 100)
    after = backup(members.leader(), "take", "--type", "incr")
    assert after["prior"] == before["label"]
    seen = archived(members)
    assert len(seen["sets"]) == 3
    assert (seen["gap"], seen["broken"], of_wal(seen)) == ("", [], [])


def test_replica_takes_no_backup_and_raises_no_alarm_of_archiving(members: Members) -> None:
    replica = members.replicas()[0]
    assert backup(replica, "take", "--type", "full")["skipped"]
    seen = json.loads(replica.provision("backup", "status", "--json").stdout)
    assert of_wal(seen) == []


def test_any_member_tests_the_restore_of_a_backup_that_another_one_took(members: Members) -> None:
    rows = write(members, 10)
    taken = backup(members.leader(), "take", "--type", "incr")
    replica = members.replicas()[0]
    proved = backup(replica, "drill", "--type", "physical")
    assert (proved["set"], proved["passed"]) == (taken["label"], True)
    assert proved["tables"]["public.kept"] == rows
    for host in members.hosts.values():
        seen = json.loads(host.provision("backup", "status", "--json").stdout)
        assert seen["drill"]["last_passed"]["set"] == taken["label"], host.name


@pytest.mark.faults
def test_switchover_ends_a_backup_and_the_new_primary_takes_the_next(members: Members) -> None:
    with members.superuser(members.leader(), DATABASE) as session:
        session.execute("CREATE TABLE large AS SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 200000) i")
    source = members.leader()
    command = as_server_user("/usr/bin/python3", "-S", "-c", FOLLOW, str(source.home), "backup", "take")
    running_backup = subprocess.Popen(
        command, cwd=source.home, env=source.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = members.root / "repository/backup" / STANZA
    members.until(lambda: any(folder.glob("*F/backup.manifest.copy")) or running_backup.poll() is not None, 60, "idle")
    switch(members)
    out, problem = running_backup.communicate(timeout=120)
    # It either ended before the switchover or fails in words; nothing that it left counts as a backup.
    assert (running_backup.returncode == 0) == (out != ""), problem
    taken = backup(members.leader(), "take", "--type", "full")
    seen = archived(members)
    assert seen["sets"][-1]["label"] == taken["label"]
    assert (seen["gap"], seen["broken"], of_wal(seen)) == ("", [], [])


@pytest.mark.faults
def test_new_primary_archives_what_the_lost_one_had_not(members: Members) -> None:
    backup(members.leader(), "take", "--type", "incr")
    lost, archive = members.leader(), members.root / "repository/archive"
    archive.chmod(0o000)  # the repository rejects WAL
    try:
        for _ in range(2):
            write(members, 50)
        time.sleep(2)  # the replicas have it
        lost.kill_all()
        time.sleep(2)
    finally:
        archive.chmod(0o750)
    members.until(
        lambda: any(members.writable(host) for host in members.hosts.values() if host is not lost), 60, "none"
    )
    rows = write(members, 1)
    # Before it returns: Patroni then archives what is left on its disk, if that still exists.
    members.until(lambda: archived(members)["gap"] == "", 30, "a gap is left")
    lost.start_all()
    members.until(members.complete, 120, "the lost member is not back")
    assert of_wal(archived(members)) == []
    assert rows == write(members, 0)
