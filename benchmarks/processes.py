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

    One level of children is enough: the postmaster starts every process of the server.
    """
    own = _fields(root / str(postmaster))
    total = sum(int(own[field]) for field in (USER, SYSTEM, CHILDREN_USER, CHILDREN_SYSTEM))
    for folder in root.glob("[0-9]*"):
        with suppress(OSError):  # a process that ends now counts in the postmaster's children next time
            found = _fields(folder)
            if int(found[PARENT]) == postmaster:
                total += int(found[USER]) + int(found[SYSTEM])
    return total / TICKS_PER_S


def _fields(folder: Path) -> list[str]:
    return (folder / "stat").read_text().rpartition(")")[2].split()
