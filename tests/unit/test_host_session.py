"""A run's commands are found through the process that lives as long as its connection; its workers end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.module_utils import lock, session
from tests.until import until

ROOT = Path(__file__).parents[2]
# A connection: it starts a shell with a command, as sshd does, and a program without one, such as sftp-server.
CONNECTION = """
import subprocess, sys
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
subprocess.Popen(["sleep", "60"], **quiet)
print(subprocess.Popen(["sh", "-c", "sleep 60; true"], **quiet).pid, flush=True)
sys.stdin.read()
"""


class Connection:
    """A living connection with one running command."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONNECTION], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.command = int(self.process.stdout.readline())
        assert until(lambda: [name(pid) for pid in children(self.command)] == ["sleep"], 20)
        self.session = session.Process(self.process.pid, started(self.process.pid))

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end_command(self) -> None:
        for pid in [*children(self.command), self.command]:
            os.kill(pid, signal.SIGKILL)


def started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection that a lock watches, with files of this test."""
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(lock, "QUEUE", tmp_path / "queue")
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # where the tests run as another user
    made = Connection()
    monkeypatch.setattr(session, "current", lambda: made.session)
    below = [session.Process(pid, started(pid)) for pid in children(made.process.pid)]
    below += [session.Process(pid, started(pid)) for each in below for pid in children(each.pid)]
    yield made
    made.end()
    for each in below:
        if each.alive:
            os.kill(each.pid, signal.SIGKILL)
    if lock.held():
        lock.release(lock.read()["holder"])


RUN = {"id": "mine", "pid": 7, "user": "ada", "controller": "laptop"}
OTHER = {"id": "other", "pid": 8, "user": "bob", "controller": "desk"}


def test_commands_of_a_session_are_its_shells_but_not_the_one_that_asks(connection: Connection) -> None:
    (command,) = session.commands(connection.session, set())
    assert command.pid == connection.command
    (sleep,) = children(connection.command)
    assert session.described([command]) == [f"process {sleep} (sleep)"]
    assert session.commands(connection.session, {sleep}) == []
    connection.end_command()
    assert until(lambda: session.commands(connection.session, set()) == [], 20)


def test_lock_ends_after_the_connection_and_its_last_command(connection: Connection) -> None:
    assert lock.acquire(RUN, 0)["taken"]
    time.sleep(1)  # the lock's process looks at the session every 0.1 s
    connection.end()
    assert until(lambda: lock.read().get("unfinished"), 20)
    assert lock.held()
    holder = lock.read()["holder"]
    answer = lock.acquire(OTHER, holder)
    (sleep,) = children(connection.command)
    assert (answer["taken"], answer["unfinished"]) == (False, [f"process {sleep} (sleep)"])
    connection.end_command()
    assert until(lambda: not lock.held(), 20)
    assert lock.acquire(OTHER, holder)["taken"]


def test_lock_of_a_dead_run_is_taken_when_its_command_has_ended(connection: Connection) -> None:
    lock.acquire(RUN, 0)
    holder = lock.read()["holder"]
    assert lock.acquire(OTHER, holder)["taken"] is False
    connection.end_command()
    assert until(lambda: lock.acquire(OTHER, holder)["taken"], 20)
    assert lock.read()["id"] == "other"


@pytest.mark.usefixtures("connection")
def test_run_takes_its_lost_lock_again() -> None:
    lock.acquire(RUN, 0)
    assert lock.keep(RUN) == ""
    lock.release(lock.read()["holder"])
    assert lock.keep(RUN) == ""
    assert (lock.held(), lock.read()["id"]) == (True, "mine")


@pytest.mark.usefixtures("connection")
def test_run_whose_lost_lock_another_run_has_is_refused() -> None:
    lock.acquire(RUN, 0)
    lock.release(lock.read()["holder"])
    lock.acquire(OTHER, 0)
    refused = (
        "another run took the host lock when the connection of this one ended: process 8 of bob on desk; run again"
    )
    assert lock.keep(RUN) == refused
    assert lock.read()["id"] == "other"


def test_run_that_connects_again_waits_for_its_command_of_the_broken_connection(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.acquire(RUN, 0)
    time.sleep(1)
    connection.end()
    monkeypatch.setattr(session, "current", lambda: session.Process(os.getpid(), started(os.getpid())))
    monkeypatch.setattr(lock, "KEEP_S", 1)
    (sleep,) = children(connection.command)
    assert lock.keep(RUN) == (
        "the connection broke, and its command did not end within 1 s: "
        f"process {sleep} (sleep) still runs; run again when it has ended"
    )
    monkeypatch.setattr(lock, "KEEP_S", 10)
    connection.end_command()
    assert lock.keep(RUN) == ""
    assert lock.read()["session"][0] == os.getpid()


WORKER = """
import os, sys, time
from plugins.plugin_utils import lifetime
sys.argv[0] = "/usr/bin/{name}"
lifetime.bind()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize(("program", "ends"), [("ansible-playbook", True), ("pytest", False)])
def test_worker_ends_with_a_killed_ansible_program(program: str, ends: bool) -> None:
    command = [sys.executable, "-c", WORKER.format(name=program)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout
        worker = session.Process(pid := int(main.stdout.readline()), started(pid))
        main.kill()
        main.wait()
        assert until(lambda: not worker.alive, 20 if ends else 1) is ends
        if worker.alive:
            os.kill(pid, signal.SIGKILL)
