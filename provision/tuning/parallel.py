"""Parallel workers for queries; those for index builds are in `vector`. Pure."""

from provision.tuning.memory import WORK_MEM_FACTOR, Memory
from provision.tuning.model import Request, Setting, group

SHARED_HASHES = 4  # parallel hash joins at once that shared memory (/dev/shm) must hold, or they fail
BACKGROUND_WORKERS = 8  # logical replication launcher, extensions, room for what a user preloads


def per_query(request: Request, memory: Memory) -> int:
    """Return the workers of one query: half of the CPUs, up to four; none where their hashes find no room."""
    wanted = min(request.host.cpus // 2, 4)
    hashes_kb = SHARED_HASHES * (wanted + 1) * WORK_MEM_FACTOR * memory.work_mem_kb
    return wanted if hashes_kb <= request.host.shared_memory_mb * 1024 else 0


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return how many workers there are and when a query gets some."""
    cpus, each = request.host.cpus, per_query(request, memory)
    why = "half of the CPUs, at most four: many agents, short queries"
    if not each:
        why = "one CPU: parallel queries only cost memory" if cpus == 1 else "too little shared memory (/dev/shm)"
    workers = max(memory.workers, memory.builders)
    small = "HNSW builds are parallel for small tables too; the default waits for 8 MB of heap"
    return group(
        "parallelism",
        ("max_worker_processes", workers + BACKGROUND_WORKERS, "", "parallel workers, and those of extensions"),
        ("max_parallel_workers", workers, "", f"{cpus} CPUs, and what the memory carries"),
        ("max_parallel_workers_per_gather", each, "", why),
        ("min_parallel_table_scan_size", 1, "MB", small),
    )
