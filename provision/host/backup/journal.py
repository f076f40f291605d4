"""The journal of a restore: lets a killed restore resume, and keeps backups and restore tests away until it has ended.

Reads and writes /var/lib/provision. A restore in place and a copy beside have separate journals, so that a copy does
not hide an unfinished restore in place. A journal counts only while the data directory has the inode that the restore
created and has not been promoted since: a promoted directory holds new data.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provision import secure_path, system
from provision.errors import HostError

IN_PLACE, COPY = "restore", "restore-copy"
RESTORING, REPLAYING, PROMOTING, PROMOTED = "restoring", "replaying", "promoting", "promoted"
PAUSED = "paused: read-only, at its target"
CAUGHT_UP = "read-only: all archived WAL is replayed"
OPEN = (RESTORING, REPLAYING, PROMOTING, PAUSED, CAUGHT_UP)


class HeldError(HostError):
    """Another process holds the lock."""


@contextmanager
def held(name: str, busy: str, status: str = "provision backup status") -> Iterator[None]:
    """Hold a lock file on this host within a `with` block. Raises HostError if another process holds it."""
    handle = secure_path.open_lock(system.EVIDENCE / f"{name}.lock")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(
                busy,
                where=f"{system.EVIDENCE}/{name}.lock is locked",
                run=f"wait until it ends; {status}",
            ) from None
        yield
    finally:
        os.close(handle)


def is_held(name: str) -> bool:
    """Return whether a process holds the lock."""
    try:
        with held(name, ""):
            return False
    except HostError:
        return True


def read(name: str) -> dict[str, Any]:
    """Return a journal, {} if no restore was ever started."""
    return system.evidence(name, of_root=True)


def write(name: str, facts: dict[str, Any], data: Path) -> dict[str, Any]:
    """Write a journal, with the path and inode of the data directory that is being restored."""
    facts = {**facts, "data": str(data), "inode": data.stat().st_ino}
    system.keep(name, facts)
    return facts


def state(name: str, data: Path) -> str:
    """Return the state of an unfinished restore into this directory, '' if there is none.

    A directory that was promoted by hand is in use: its restore counts as ended.
    """
    found = read(name)
    if found.get("data") != str(data) or found.get("state") not in OPEN or not data.is_dir():
        return ""
    if found.get("inode") != data.stat().st_ino:
        return ""
    promoted = (data / "global/pg_control").exists() and not (data / "standby.signal").exists()
    if promoted and found["state"] != PROMOTING:
        return ""
    return str(found["state"])


def unfinished(data: Path) -> str:
    """Describe an unfinished restore in place and how to end it; '' if there is none."""
    now = state(IN_PLACE, data)
    if not now:
        return ""
    what = f"a restore in place has not finished ({now}; target {read(IN_PLACE).get('target')})"
    if is_held(IN_PLACE):
        return f"{what}: it is running"
    if now in (PAUSED, CAUGHT_UP, PROMOTING):
        return f"{what}: end it with provision restore promote, or restore to another target"
    return f"{what} and is not running: repeat the same command to resume it"


def refuse_unfinished(data: Path) -> None:
    """Raise HostError while a restore in place is unfinished."""
    if seen := unfinished(data):
        raise HostError(
            "no backup or restore test before the restore has finished", seen=seen, run="provision backup status"
        )
