"""Hold a host for one run: further runs wait in the order of their arrival; a killed run leaves nothing held.

A small process keeps an flock for as long as the run's own session with the host lives (the nearest sshd, or the
ansible-playbook of a local run) and a command of the run goes on: when both have ended, the kernel frees the lock.
A run that goes on after its connection ended takes the lock again (`keep`), unless another run has it by then.

A waiting run asks again every few seconds. A file lists the waiting runs; one that stops asking loses its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import session

LOCK = Path("/run/provision/lock")
QUEUE = Path("/run/provision/queue")
ASKS_WITHIN_S = 30
"""A waiting run that did not ask for this long has ended, or lost its connection."""
LEASE_S = 4 * 3600  # where no session can be watched (an unusual connection), no run is this long
WATCH_S = 0.1
"""Between two looks at a session: a command that began this shortly before its connection broke is not waited for."""
KEEP_S = 600
"""Seconds for the end of a command whose connection broke, before the run gives up on this host."""


def read() -> dict[str, Any]:
    """Return the record of the present or last holder of the lock."""
    try:
        found = json.loads(LOCK.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def take(run: dict[str, Any]) -> bool:
    """Start a holder; False if another run holds the lock."""
    LOCK.parent.mkdir(mode=0o755, exist_ok=True)
    handle = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    watched = session.current()
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _hold(handle, tell, run, watched)
        os._exit(0)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    os.close(handle)
    return True


def _hold(handle: int, tell: int, run: dict[str, Any], watched: session.Process) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how `release` ends it
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    record = {**run, "holder": os.getpid(), "since": int(time.time()), "session": watched}
    _write(handle, record)
    os.write(tell, b"1")
    os.close(tell)
    end = time.monotonic() + LEASE_S
    running: list[session.Process] = []
    while time.monotonic() < end:
        seen = session.commands(watched, set()) if watched.pid else []
        if not watched.pid or watched.alive:
            running = seen
        else:
            running = [command for command in running if command.alive]
            if not running:
                break
            if "unfinished" not in record:
                record["unfinished"] = session.described(running)
                _write(handle, record)
        time.sleep(WATCH_S)
    os._exit(0)


def _write(handle: int, record: dict[str, Any]) -> None:
    os.ftruncate(handle, os.pwrite(handle, json.dumps(record).encode(), 0))


def release(holder: int) -> None:
    """End a holder and wait until the kernel has freed the lock."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
    for _ in range(100):
        if not held():
            return
        time.sleep(0.02)


def held() -> bool:
    """Whether a run holds the lock now."""
    try:
        with LOCK.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def acquire(run: dict[str, Any], take_from: int, waits: bool = False) -> dict[str, Any]:
    """Take the lock if it is free and no earlier run waits; return success and the run that is in the way.

    `take_from` is the lock's process of a dead run, whose commands that have not ended are returned as `unfinished`.
    With `waits` the run keeps its place among the waiting ones.
    """
    holder, unfinished = read(), []
    if held() and holder.get("id") == run.get("id"):
        return {"taken": True, "holder": holder, "unfinished": []}
    ahead, askers = _ahead(run)
    if take_from and take_from == holder.get("holder"):
        unfinished = _unfinished(holder, askers)
        # Without its session the lock's process ends by itself, after the last command.
        if not unfinished and (session.of(holder).alive or not session.of(holder).pid):
            release(holder["holder"])
    if not ahead and take(run):
        _leave(run)
        return {"taken": True, "holder": read(), "unfinished": []}
    if not waits:
        _leave(run)
    return {"taken": False, "holder": read() if held() or not ahead else ahead[0], "unfinished": unfinished}


def _unfinished(holder: dict[str, Any], askers: set[int]) -> list[str]:
    watched = session.of(holder)
    if watched.alive:
        return session.described(session.commands(watched, askers))
    return [str(each) for each in holder.get("unfinished", [])]


def keep(run: dict[str, Any]) -> str:
    """Take the lock again if it ended with the run's connection; return why this run must not go on, or "".

    A command of the run whose connection broke is waited for. Does nothing without `run`, or if not called as root.
    """
    if not run or os.geteuid() != 0:
        return ""
    unfinished: list[str] = []
    end = time.monotonic() + KEEP_S
    while time.monotonic() < end:
        holder = read()
        if not held():
            if take(run):
                return ""
        elif holder.get("id") == run.get("id"):
            watched = session.of(holder)
            unfinished = _unfinished(holder, {os.getpid()}) if watched != session.current() else []
            if not unfinished and (not watched.pid or watched.alive):
                return ""
        elif holder:
            who = f"process {holder.get('pid')} of {holder.get('user')} on {holder.get('controller')}"
            return f"another run took the host lock when the connection of this one ended: {who}; run again"
        time.sleep(WATCH_S)
    why = f": {unfinished[0]} still runs" if unfinished else ""
    return f"the connection broke, and its command did not end within {KEEP_S} s{why}; run again when it has ended"


def _ahead(run: dict[str, Any]) -> tuple[list[dict[str, Any]], set[int]]:
    """Enter the run among the waiting ones, unless it is there; return those before it, and all pids that ask."""
    now = time.time()
    with _waiting() as rows:
        rows[:] = [row for row in rows if now - row["asked"] < ASKS_WITHIN_S]
        place = next((at for at, row in enumerate(rows) if row.get("id") == run.get("id")), len(rows))
        if place == len(rows):
            rows.append({**run, "since": int(now)})
        rows[place].update(asked=now, asker=os.getpid())
        return rows[:place], {int(row.get("asker", 0)) for row in rows}


def _leave(run: dict[str, Any]) -> None:
    with _waiting() as rows:
        rows[:] = [row for row in rows if row.get("id") != run.get("id")]


@contextlib.contextmanager
def _waiting() -> Iterator[list[dict[str, Any]]]:
    """Give the list of waiting runs to read and change, for one process at a time."""
    QUEUE.parent.mkdir(mode=0o755, exist_ok=True)
    with os.fdopen(os.open(QUEUE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            found = json.loads(stream.read() or "[]")
        except ValueError:
            found = []
        rows = [row for row in found if isinstance(row, dict) and isinstance(row.get("asked"), float)]
        yield rows
        stream.seek(0)
        stream.truncate()
        stream.write(json.dumps(rows))
