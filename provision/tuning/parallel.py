"""Parallel workers for queries; module `vector` sizes those for index builds. Pure."""

from provision.tuning.memory import WORK_MEM_FACTOR, Memory
from provision.tuning.model import Request, Setting, group

SHARED_HASHES = 4  # concurrent parallel hash joins; they fail if /dev/shm cannot hold them
BACKGROUND_WORKERS = 8  # logical replication launcher, extensions, the user's preloaded libraries


def per_query(request: Request, memory: Memory) -> int:
    """Return the workers per query: half of the CPUs, up to four; 0 if /dev/shm cannot hold their hashes."""
    workers = min(request.host.cpus // 2, 4)
    hashes_kb = SHARED_HASHES * (workers + 1) * WORK_MEM_FACTOR * memory.work_mem_kb
    return workers if hashes_kb <= request.host.shared_memory_mb * 1024 else 0


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return the parallel query settings."""
    cpus, each = request.host.cpus, per_query(request, memory)
    why = "half of the CPUs, at most four: the load is many short queries"
    if not each:
        why = "one CPU: parallel queries would only cost memory" if cpus == 1 else "too little shared memory (/dev/shm)"
    workers = max(memory.workers, memory.builders)
    small = "also builds HNSW indexes of small tables in parallel; the default is 8 MB"
    return group(
        "parallelism",
        ("max_worker_processes", workers + BACKGROUND_WORKERS, "", "parallel workers and those of extensions"),
        ("max_parallel_workers", workers, "", f"for {cpus} CPUs, within memory"),
        ("max_parallel_workers_per_gather", each, "", why),
        ("min_parallel_table_scan_size", 1, "MB", small),
    )
