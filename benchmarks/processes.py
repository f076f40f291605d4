"""CPU time of a PostgreSQL server, from /proc. Reads only."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PARENT, USER, SYSTEM, CHILDREN_USER, CHILDREN_SYSTEM = 1, 11, 12, 13, 14
"""Fields of /proc/PID/stat after the name of the program, counted from 0 (proc_pid_stat(5))."""


def cpu_seconds(postmaster: int, root: Path = Path("/proc")) -> float:
    """Return the CPU seconds of a server so far: the postmaster, its ended children and its running ones.

    One level of children is enough: the postmaster starts every process of the server. A child that ends during the
    scan would count neither as running nor as ended, so the scan is repeated until none does.
    """
    while True:
        own = _fields(root / str(postmaster))
        running = sum(_running(folder, postmaster) for folder in root.glob("[0-9]*"))
        ended = [own[field] for field in (CHILDREN_USER, CHILDREN_SYSTEM)]
        after = _fields(root / str(postmaster))
        if ended == [after[field] for field in (CHILDREN_USER, CHILDREN_SYSTEM)]:
            return (running + sum(int(own[field]) for field in (USER, SYSTEM)) + sum(map(int, ended))) / TICKS_PER_S


def _running(folder: Path, postmaster: int) -> int:
    """Return the ticks of a child; 0 for other processes and for one that has just ended."""
    with suppress(OSError):
        found = _fields(folder)
        if int(found[PARENT]) == postmaster:
            return int(found[USER]) + int(found[SYSTEM])
    return 0


def _fields(folder: Path) -> list[str]:
    return (folder / "stat").read_text().rpartition(")")[2].split()
