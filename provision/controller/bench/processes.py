"""CPU time and memory of a PostgreSQL server, from /proc. Reads only."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
WATCH_S = 0.2
SHARED = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is
PARENT, USER, SYSTEM, CHILDREN_USER, CHILDREN_SYSTEM = 1, 11, 12, 13, 14
"""Fields of /proc/PID/stat after the name of the program, counted from 0 (proc_pid_stat(5))."""


def cpu_seconds(postmaster: int, root: Path = Path("/proc")) -> float:
    """Return the CPU seconds of a server so far: the postmaster, its ended children and its running ones.

    One level of children is enough: the postmaster starts every process of the server. A child that ends during the
    scan would count neither as running nor as ended, so the scan is repeated until none does.
    """
    while True:
        own = fields(root / str(postmaster))
        running = sum(_running(folder, postmaster) for folder in root.glob("[0-9]*"))
        ended = [own[field] for field in (CHILDREN_USER, CHILDREN_SYSTEM)]
        after = fields(root / str(postmaster))
        if ended == [after[field] for field in (CHILDREN_USER, CHILDREN_SYSTEM)]:
            return (running + sum(int(own[field]) for field in (USER, SYSTEM)) + sum(map(int, ended))) / TICKS_PER_S


def memory_mb(postmaster: int, root: Path = Path("/proc"), shared: Path = SHARED) -> float:
    """Return the private memory of a server's processes in MB, with the dynamic shared memory of all servers."""
    found = 0
    for folder in root.glob("[0-9]*"):
        with suppress(OSError):
            status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
            if status["PPid"] == str(postmaster):
                found += int(status.get("RssAnon", "0").split()[0]) << 10
    for segment in shared.glob("PostgreSQL.*"):
        with suppress(OSError):
            found += segment.stat().st_blocks * 512
    return found / 2**20


@contextmanager
def peak_memory(postmaster: int) -> Iterator[list[float]]:
    """Watch a server's memory within a `with` block; the list then holds its highest value in MB above the first."""
    over, found, first = threading.Event(), [0.0], memory_mb(postmaster)

    def watch() -> None:
        while not over.wait(WATCH_S):
            found[0] = max(found[0], memory_mb(postmaster) - first)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _running(folder: Path, postmaster: int) -> int:
    """Return the ticks of a child; 0 for other processes and for one that has just ended."""
    with suppress(OSError):
        found = fields(folder)
        if int(found[PARENT]) == postmaster:
            return int(found[USER]) + int(found[SYSTEM])
    return 0


def fields(folder: Path) -> list[str]:
    """Return the fields of a process's stat, after the name of its program."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
