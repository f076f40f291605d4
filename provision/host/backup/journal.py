"""How far a restore has come, so that one that was killed can go on, and nothing else happens to its data meanwhile.

Reads and writes /var/lib/provision. A restore in place and a copy beside have a journal each: a look at a copy must not
make the host forget that its own data is half restored. Never trusts the journal alone: the data directory must be the
very one (inode) that the restore made, and must not have been promoted since, for then it holds new data.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from provision import system
from provision.errors import HostError

IN_PLACE, COPY = "restore", "restore-copy"
RESTORING, REPLAYING, PROMOTING, PROMOTED = "restoring", "replaying", "promoting", "promoted"
PAUSED = "paused: read-only, at its target"
CAUGHT_UP = "read-only: everything that the archive holds is replayed"
OPEN = (RESTORING, REPLAYING, PROMOTING, PAUSED, CAUGHT_UP)


@contextmanager
def held(name: str, busy: str) -> Iterator[None]:
    """Hold a lock of this host for as long as this process lives. Raises HostError where another one has it."""
    system.EVIDENCE.mkdir(parents=True, exist_ok=True)
    handle = os.open(system.EVIDENCE / f"{name}.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostError(
                busy, where=f"{system.EVIDENCE}/{name}.lock is locked", run="wait for it, or provision backup status"
            ) from None
        yield
    finally:
        os.close(handle)


def is_held(name: str) -> bool:
    """Tell whether a process has the lock."""
    try:
        with held(name, ""):
            return False
    except HostError:
        return True


def read(name: str) -> dict[str, Any]:
    """Give a journal; {} where no restore was ever begun."""
    return system.evidence(name)


def write(name: str, facts: dict[str, Any], data: Path) -> dict[str, Any]:
    """Keep a journal, with the identity of the data directory that the restore fills."""
    facts = {**facts, "data": str(data), "inode": data.stat().st_ino}
    system.keep(name, facts)
    return facts


def state(name: str, data: Path) -> str:
    """Give the state of a restore that still has this very directory in hand; '' when none has.

    A directory that was promoted by hand is somebody's data: no restore has it in hand any more.
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
    """Say that this host's own data is in the hands of a restore, and what ends that; '' when it is not."""
    now = state(IN_PLACE, data)
    if not now:
        return ""
    what = f"a restore in place has not ended ({now}; target {read(IN_PLACE).get('target')})"
    if is_held(IN_PLACE):
        return f"{what}: it runs"
    if now in (PAUSED, CAUGHT_UP, PROMOTING):
        return f"{what}: provision restore promote ends it, or restore to another target"
    return f"{what}, and it does not run any more: run it again, it goes on where it was"


def refuse_unfinished(data: Path) -> None:
    """Raise HostError while this host's own data is in the hands of a restore."""
    if seen := unfinished(data):
        raise HostError(
            "nothing is backed up or drilled before a restore has ended", seen=seen, run="provision backup status"
        )
