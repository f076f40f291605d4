"""Write-ahead log and checkpoints. Pure.

Durability is not for sale: fsync, full_page_writes and synchronous_commit stay on in both profiles.
Archiving (archive_mode, archive_command) belongs to the role `backup`.
"""

from provision.tuning.memory import Memory
from provision.tuning.model import Request, Setting, group

MAX_WAL_MB = (1024, 32768)  # below, checkpoints come too often; above, crash recovery takes too long
MAX_WAL_DISK_SHARE = 10  # WAL may use a tenth of the disk between two checkpoints
SLOT_FACTOR = 2  # what a forgotten replication slot may hold back, in units of max_wal_size


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return how WAL is written, kept and flushed."""
    largest = _max_wal_mb(request)
    buffers = max(4, min(memory.shared_buffers // 64, 64))
    minutes, why = 5, "recovery in seconds; nobody measures throughput here"
    if request.computed:
        minutes, why = 30, "each page is written whole into WAL once per checkpoint: fewer are cheaper"
    return group(
        "wal and checkpoints",
        ("wal_compression", *_compression(request)),
        ("wal_buffers", buffers, "MB", "room for concurrent commits; automatic stops at 16 MB"),
        ("max_wal_size", largest, "MB", "checkpoints by time, not by volume: a third of memory, a tenth of disk"),
        ("min_wal_size", largest // 2, "MB", "recycled segments cost less than new ones"),
        ("checkpoint_timeout", minutes, "min", why),
        ("checkpoint_completion_target", 0.9, "", "spreads the writes over the interval"),
        (
            "max_slot_wal_keep_size",
            SLOT_FACTOR * largest,
            "MB",
            "a forgotten slot is dropped before the disk is full",
        ),
    )


def _compression(request: Request) -> tuple[str, str, str]:
    """Return value, unit, reason; pglz, the only method of 14, measured slower than none."""
    if request.postgresql >= 15 and request.lz4:
        return "lz4", "", "six times less WAL in our measurements, at next to no CPU"
    reason = "14 offers only pglz" if request.postgresql < 15 else "this server was built without lz4"
    return "off", "", f"{reason}; pglz measured slower than none"


def _max_wal_mb(request: Request) -> int:
    """Return max_wal_size in MiB, a multiple of two 16 MB segments."""
    low, high = MAX_WAL_MB
    wanted = max(low, min(request.host.steady_mb // 3, high)) if request.computed else low
    if request.host.disk_mb is not None:
        wanted = min(wanted, max(128, request.host.disk_mb // MAX_WAL_DISK_SHARE))
    step = 1024 if wanted >= 4096 else 64
    return wanted // step * step
