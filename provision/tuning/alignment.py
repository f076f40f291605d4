"""Sizes wal_buffers so that the buffer pool of 14 and 15 begins at a page boundary, as that of 16 and newer does. Pure.

Those two place the pool where the structures before it in shared memory end. At 1,280 bytes after a boundary, searches
of vectors of 1536 dimensions took 12 % more CPU time than at one (docs/tuning.md, "The buffer pool's alignment").

The structures take lines of 128 bytes, whose number follows a few settings (CreateSharedMemoryAndSemaphores in
src/backend/storage/ipc/ipci.c). Another 128 kB of wal_buffers add one line: 8 bytes for each of 16 buffers. A library
that reserves locks, other than pg_stat_statements, moves the pool off the boundary again; nothing else depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from provision.tuning.memory import kilobytes, number
from provision.tuning.model import Setting

LINE, PAGE = 128, 4096
"""Bytes: PG_CACHE_LINE_SIZE, and a page of memory."""
FIXED_LINES = {14: 12, 15: 4}
"""Lines of the structures that follow no setting, modulo those of a page; fitted to servers on x86-64."""
SMALLEST_KB = 512 * 1024
"""With a smaller shared_buffers, the caches of transaction states before the pool are smaller too."""
SENDERS = 10
"""PostgreSQL's default of max_wal_senders."""
LOCKS_LIBRARY = "pg_stat_statements"


def aligned(settings: list[Setting], major: int, given: Mapping[str, str], senders: int) -> list[Setting]:
    """Return the settings with wal_buffers enlarged by less than 4 MB, or unchanged where that aligns nothing.

    `given` are the user's settings: wal_buffers among them stays as it is. `senders` is max_wal_senders otherwise.
    """
    texts = {each.name: each.text for each in settings}
    buffers_kb, wal_kb = (kilobytes(texts.get(name, ""), 8) or 0 for name in ("shared_buffers", "wal_buffers"))
    if major not in FIXED_LINES or "wal_buffers" in given or buffers_kb < SMALLEST_KB:
        return settings
    beyond = -_lines(texts, major, buffers_kb, wal_kb, senders) % (PAGE // LINE)
    reason = f"this size aligns the buffer pool to pages, which {major} does not do itself"
    return [
        replace(each, value=wal_kb + beyond * LINE, unit="kB", reason=f"{each.reason}; {reason}")
        if each.name == "wal_buffers"
        else each
        for each in settings
    ]


def _lines(texts: Mapping[str, str], major: int, buffers_kb: int, wal_kb: int, senders: int) -> int:
    """Return the lines before the pool, modulo those of a page."""
    defaults = {"max_connections": 100, "autovacuum_max_workers": 3, "max_worker_processes": 8}
    backends = 1 + sum(number(texts.get(name, ""), default) for name, default in defaults.items())
    backends += number(texts.get("max_wal_senders", ""), senders)
    prepared = number(texts.get("max_prepared_transactions", ""), 0)
    return (
        FIXED_LINES[major]
        + backends  # a semaphore each
        + math.ceil((56 + 8 * (backends + prepared)) / LINE)  # two multixacts each
        + (LOCKS_LIBRARY in texts.get("shared_preload_libraries", ""))
        + wal_kb // LINE
        + math.ceil(buffers_kb / 16)  # descriptors of 64 bytes for 8 kB
    )
