"""WAL and checkpoint settings. Pure.

fsync, full_page_writes and synchronous_commit stay on in every profile.
The Ansible role `backup` sets archiving (archive_mode, archive_command).
"""

from provision.tuning.memory import Memory
from provision.tuning.model import Request, Setting, group

MAX_WAL_MB = (1024, 32768)  # bounds: less causes frequent checkpoints, more makes crash recovery slow
MAX_WAL_DISK_SHARE = 10  # WAL between two checkpoints may use a tenth of the disk
SLOT_FACTOR = 2  # WAL retained for an abandoned replication slot, in units of max_wal_size


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return the WAL and checkpoint settings."""
    largest = _max_wal_mb(request)
    buffers = max(4, min(memory.shared_buffers // 64, 64))
    minutes, why = 5, "recovery takes seconds; throughput does not matter in development"
    if request.computed:
        minutes, why = 30, "fewer checkpoints write fewer full page images"
    return group(
        "wal and checkpoints",
        ("wal_compression", *_compression(request)),
        ("wal_buffers", buffers, "MB", "room for concurrent commits; the automatic size stops at 16 MB"),
        (
            "max_wal_size",
            largest,
            "MB",
            "checkpoints by time, not volume: at most a third of memory, a tenth of the disk",
        ),
        ("min_wal_size", largest // 2, "MB", "recycling segments costs less than creating them"),
        ("checkpoint_timeout", minutes, "min", why),
        ("checkpoint_completion_target", 0.9, "", "spreads the writes over the interval"),
        (
            "max_slot_wal_keep_size",
            SLOT_FACTOR * largest,
            "MB",
            "an abandoned slot is invalidated before the disk fills up",
        ),
    )


def _compression(request: Request) -> tuple[str, str, str]:
    """Return value, unit, reason; pglz, the only method of 14, measured slower than none."""
    if request.postgresql >= 15 and request.lz4:
        return "lz4", "", "six times less WAL in our measurements, at almost no CPU cost"
    reason = "14 supports only pglz" if request.postgresql < 15 else "this server was built without lz4"
    return "off", "", f"{reason}; pglz was slower than no compression in our measurements"


def _max_wal_mb(request: Request) -> int:
    """Return max_wal_size in MiB, a multiple of two 16 MB segments."""
    low, high = MAX_WAL_MB
    size = max(low, min(request.host.steady_mb // 3, high)) if request.computed else low
    if request.host.disk_mb is not None:
        size = min(size, max(128, request.host.disk_mb // MAX_WAL_DISK_SHARE))
    step = 1024 if size >= 4096 else 64
    return size // step * step
