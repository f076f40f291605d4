"""Autovacuum settings for append-heavy activities and metrics and update-heavy sessions. Pure.

Per-table storage parameters (memories, whose HNSW index makes VACUUM expensive) are set by the migrations.
"""

from provision.tuning.memory import Memory
from provision.tuning.model import Request, Setting, group


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return the autovacuum settings."""
    workers = memory.autovacuum_workers
    limit, why = (
        (2000, "the default of 200 assumes spinning disks") if request.flash else (400, "leaves I/O for queries")
    )
    rows: list[tuple[str, int | float, str, str]] = [
        ("autovacuum_max_workers", workers, "", "a long VACUUM of an HNSW index must not delay small tables"),
        ("autovacuum_naptime", 30, "s", "sessions are updated constantly"),
        ("autovacuum_vacuum_scale_factor", 0.1, "", "the default of 20% dead rows is too late for sessions"),
        ("autovacuum_vacuum_insert_scale_factor", 0.1, "", "freezes rows appended to activities and metrics"),
        ("autovacuum_analyze_scale_factor", 0.05, "", "queries read the newest rows of time-ordered tables"),
        ("autovacuum_vacuum_cost_limit", limit, "", why),
    ]
    if request.postgresql >= 16:
        size = max(2, min(memory.shared_buffers // 128, 64))
        rows.append(("vacuum_buffer_usage_limit", size, "MB", "with a small buffer ring VACUUM waits for its own WAL"))
    if request.postgresql >= 18:
        rows.append(("autovacuum_worker_slots", 16, "", "allows raising autovacuum_max_workers without a restart"))
    return group("autovacuum", *rows)
