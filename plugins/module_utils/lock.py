"""Hold a host for one run: further runs wait in the order of their arrival; a killed run leaves nothing held.

A small process keeps an flock for as long as the run's own session with the host lives (the nearest sshd, or the
ansible-playbook of a local run): when the connection ends, the kernel frees the lock.

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

LOCK = Path("/run/provision/lock")
QUEUE = Path("/run/provision/queue")
ASKS_WITHIN_S = 30
"""A waiting run that did not ask for this long has ended, or lost its connection."""
LEASE_S = 4 * 3600  # where no session can be watched (an unusual connection), no run is this long


def session() -> tuple[int, str]:
    """Find the process that lives as long as the run's connection: its pid and start time, or (0, "")."""
    pid = os.getppid()
    while pid > 1:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = int(_stat(pid)[1])
        except OSError:
            break
        # An action of a local run is started by a short-lived worker with the same command line: go up to the first.
        local = b"ansible-playbook" in command and name != "sudo"
        if name.startswith("sshd") or (local and not _is_playbook(parent)):
            return pid, _stat(pid)[19]
        pid = parent
    return 0, ""


def _is_playbook(pid: int) -> bool:
    try:
        return b"ansible-playbook" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _alive(pid: int, started: str) -> bool:
    try:
        return _stat(pid)[19] == started
    except OSError:
        return False


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
    watched, started = session()
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _hold(handle, tell, run, watched, started)
        os._exit(0)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    os.close(handle)
    return True


def _hold(handle: int, tell: int, run: dict[str, Any], watched: int, started: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how `release` ends it
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({**run, "holder": os.getpid(), "since": int(time.time())}).encode(), 0)
    os.write(tell, b"1")
    os.close(tell)
    end = time.monotonic() + LEASE_S
    while time.monotonic() < end and (not watched or _alive(watched, started)):
        time.sleep(0.5)
    os._exit(0)


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

    `take_from` is the lock's process of a dead run. With `waits` the run keeps its place among the waiting ones.
    """
    holder = read()
    if held() and holder.get("id") == run.get("id"):
        return {"taken": True, "holder": holder}
    if take_from and take_from == holder.get("holder"):
        release(holder["holder"])
    ahead = _ahead(run)
    if not ahead and take(run):
        _leave(run)
        return {"taken": True, "holder": read()}
    if not waits:
        _leave(run)
    return {"taken": False, "holder": read() if held() or not ahead else ahead[0]}


def _ahead(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Enter the run among the waiting ones, unless it is there, and return those before it."""
    now = time.time()
    with _waiting() as rows:
        rows[:] = [row for row in rows if now - row["asked"] < ASKS_WITHIN_S]
        place = next((at for at, row in enumerate(rows) if row.get("id") == run.get("id")), len(rows))
        if place == len(rows):
            rows.append({**run, "since": int(now)})
        rows[place]["asked"] = now
        return rows[:place]


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
