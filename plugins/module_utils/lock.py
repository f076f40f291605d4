"""Hold a host for one run: the second run waits, and a run that was killed leaves nothing held.

A small process keeps an flock for as long as the run's own session with the host lives (the nearest sshd, or the
ansible-playbook of a local run): when the connection ends, the kernel frees the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

LOCK = Path("/run/provision/lock")
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


def acquire(run: dict[str, Any], take_from: int) -> dict[str, Any]:
    """Take the lock if it is free, or from the process `take_from` of a dead run; return success and the holder."""
    holder = read()
    if held() and holder.get("id") == run.get("id"):
        return {"taken": True, "holder": holder}
    if take_from and take_from == holder.get("holder"):
        release(holder["holder"])
    return {"taken": take(run), "holder": read()}
