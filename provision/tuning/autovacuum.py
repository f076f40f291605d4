"""Autovacuum for append-heavy activities and metrics and update-heavy sessions. Pure.

Per-table storage parameters (memories, whose HNSW index makes VACUUM dear) belong to the migrations.
"""

from provision.tuning.memory import Memory
from provision.tuning.model import Request, Setting, group


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return how often and how fast tables are cleaned."""
    workers = memory.autovacuum_workers
    limit, why = (2000, "200 dates from spinning disks") if request.flash else (400, "a slow disk has other readers")
    rows: list[tuple[str, int | float, str, str]] = [
        ("autovacuum_max_workers", workers, "", "one long VACUUM of an HNSW index must not hold up small tables"),
        ("autovacuum_naptime", 30, "s", "sessions change all the time"),
        ("autovacuum_vacuum_scale_factor", 0.1, "", "a fifth of dead rows is too late for sessions"),
        ("autovacuum_vacuum_insert_scale_factor", 0.1, "", "freezes what activities and metrics append"),
        ("autovacuum_analyze_scale_factor", 0.05, "", "queries ask for the newest rows of tables in time order"),
        ("autovacuum_vacuum_cost_limit", limit, "", why),
    ]
    if request.postgresql >= 16:
        size = max(2, min(memory.shared_buffers // 128, 64))
        rows.append(("vacuum_buffer_usage_limit", size, "MB", "a small ring makes VACUUM wait for its own WAL"))
    if request.postgresql >= 18:
        rows.append(("autovacuum_worker_slots", 16, "", "room for autovacuum_max_workers without a restart"))
    return group("autovacuum", *rows)
