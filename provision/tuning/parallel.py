"""Parallel workers for queries; those for index builds are in `vector`. Pure."""

from provision.tuning.memory import Memory
from provision.tuning.model import Request, Setting, group

BACKGROUND_WORKERS = 8  # logical replication launcher, extensions, room for what a user preloads


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return how many workers there are and when a query gets some."""
    cpus = request.host.cpus
    per_query, why = min(cpus // 2, 4), "half of the CPUs, at most four: many agents, short queries"
    if not per_query:
        why = "one CPU: parallel queries only cost memory"
    workers = max(memory.workers, memory.builders)
    small = "embeddings live outside the heap, so it looks small: 8 MB keeps HNSW builds serial"
    return group(
        "parallelism",
        ("max_worker_processes", workers + BACKGROUND_WORKERS, "", "parallel workers, and those of extensions"),
        ("max_parallel_workers", workers, "", f"{cpus} CPUs, and what the memory carries"),
        ("max_parallel_workers_per_gather", per_query, "", why),
        ("min_parallel_table_scan_size", 1, "MB", small),
    )
