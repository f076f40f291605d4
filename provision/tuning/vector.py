"""Sizes for pgvector: memory of an HNSW build, /dev/shm, and search settings per role.

Pure. Formula of a build: one element of the graph takes

    4 x dimensions + 8            the vector and its header (VECTOR_SIZE in src/vector.h)
  + 16 x 2m                       neighbours on layer 0, 16 bytes each (HnswCandidate in src/hnsw.h)
  + 16 x m / (m - 1)              neighbours on higher layers, which are geometrically rarer
  + 270                           the element itself, array headers and rounding, fitted to the measurement below

pgvector 0.8.0 with 64 MB overflowed after 9,216 vectors of 1536 dimensions in a parallel build: 6,940 bytes each,
because a parallel build reserves 3 MB (HnswBeginParallel in src/hnswbuild.c); the formula gives 6,951. A parallel
build allocates all of maintenance_work_mem as one segment of dynamic shared memory at its start: /dev/shm must hold
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from provision import compatibility
from provision.tuning.model import Request, Setting, group

M = 16  # pgvector's default, used by the schema
ELEMENT_OVERHEAD_BYTES = 270
PARALLEL_RESERVE_MB = 3
# 0.5.x counts elements by formula but allocates them with palloc, which rounds 6,152 bytes up to 8,192.
PALLOC_FACTOR = 4 / 3
SHM_RESERVE_MB = 16  # of /dev/shm, for parallel queries
PARALLEL_MINIMUM_MB = 64  # plan_create_index_workers requires 32 MB for each of two participants
MAXIMUM_BUILDERS = 16
BLOCK_BYTES = 8192
DEFAULT_VECTORS = 100_000  # assumed if the expected number of memories is not set


@dataclass(frozen=True)
class Build:
    """Resources of an index build. `used_mb` includes palloc's rounding, as does `worst_mb`, before rounding down."""

    maintenance_mb: int
    used_mb: int
    worst_mb: float
    workers: int
    warnings: tuple[str, ...]


def element_bytes(dimensions: int, m: int = M) -> float:
    """Return the bytes per vector in the graph of a build (see the module docstring)."""
    return 4 * dimensions + 8 + 16 * 2 * m + 16 * m / (m - 1) + ELEMENT_OVERHEAD_BYTES


def build_mb(vectors: int, dimensions: int) -> int:
    """Return the maintenance_work_mem in MiB that keeps a build of that many vectors in memory."""
    return math.ceil(vectors * element_bytes(dimensions) / 2**20) + PARALLEL_RESERVE_MB


def capacity(maintenance_mb: int, dimensions: int) -> int:
    """Return the number of vectors that a build holds in memory before it spills."""
    return int((maintenance_mb - PARALLEL_RESERVE_MB) * 2**20 / element_bytes(dimensions))


def index_mb(request: Request) -> int:
    """Return the HNSW index size in MiB, 0 if unknown. Elements do not span pages; 1536 dimensions fill one page."""
    tuple_bytes = 4 * request.dimensions + 8 + 6 * 3 * M + 100
    per_page = max(1, BLOCK_BYTES // tuple_bytes)
    return (request.vectors or 0) * BLOCK_BYTES // per_page // 2**20


def build_memory(request: Request, low: float, high: float) -> Build:
    """Choose the memory for the expected vectors between `low` and `high` MiB, limited by /dev/shm."""
    vectors = DEFAULT_VECTORS if request.vectors is None else request.vectors
    needed = _ceil(build_mb(vectors, request.dimensions))
    exact = max(low, min(needed, high))
    maintenance = _floor(exact)
    host, warnings = request.host, []
    workers = _workers(request)
    shm = host.shared_memory_mb - SHM_RESERVE_MB
    if workers and shm < maintenance:
        if shm >= max(PARALLEL_MINIMUM_MB, needed):
            maintenance = _floor(shm)
        else:
            workers = 0
            warnings.append(
                f"shared memory (/dev/shm) has only {host.shared_memory_mb} MB, but a parallel HNSW build uses "
                f"{maintenance} MB: builds are serial; {maintenance + SHM_RESERVE_MB} MB would suffice (--shm-size)"
            )
    if request.vectors is not None and needed > maintenance:
        held = capacity(maintenance, request.dimensions)
        warnings.append(
            f"an HNSW build of {vectors:,} vectors needs {needed} MB and spills after {held:,}: "
            f"build it with SET maintenance_work_mem = '{needed}MB' on an idle host, or add memory"
        )
    factor = build_factor(request)
    return Build(maintenance, math.ceil(maintenance * factor), exact * factor, workers, tuple(warnings))


def build_factor(request: Request) -> float:
    """Return the factor by which a build may exceed maintenance_work_mem."""
    return 1.0 if compatibility.has_feature("parallel_hnsw_build", request.pgvector) else PALLOC_FACTOR


def _workers(request: Request) -> int:
    """Return workers that fill up to five CPUs with the leader, then one per two CPUs: other sessions need the rest.

    The leader builds too. On two CPUs, builds took 0.47 of stock's time with one worker and 0.43 with two: equal within
    their intervals (docs/tuning.md).
    """
    cpus = request.host.cpus
    if cpus == 1 or not request.parallel_builds:
        return 0
    return min(cpus - 1, max(4, cpus // 2), MAXIMUM_BUILDERS)


def _floor(megabytes: float) -> int:
    """Round down to 8 MB below a quarter of a gigabyte and to 64 MB above."""
    step = 8 if megabytes < 256 else 64
    return int(megabytes // step) * step


def _ceil(megabytes: int) -> int:
    """Round up to a multiple of 64 MB, which `_floor` keeps."""
    return -(-megabytes // 64) * 64


def settings(request: Request, maintenance_mb: int, builders: int) -> list[Setting]:
    """Return the settings of index builds."""
    held = capacity(maintenance_mb, request.dimensions)
    if builders:
        why = "workers of an HNSW build beside its leader"
    elif request.host.cpus == 1:
        why = "one CPU: parallel builds would only cost memory"
    elif not request.parallel_builds:
        why = f"pgvector {request.pgvector} cannot safely build in parallel ({compatibility.PARALLEL_BUILD})"
    else:
        why = "too little shared memory (/dev/shm) for parallel HNSW builds"
    fits = f"holds an HNSW build of {held:,} vectors of {request.dimensions} dimensions; also speeds up restores"
    return group(
        "vector",
        ("maintenance_work_mem", maintenance_mb, "MB", fits),
        ("max_parallel_maintenance_workers", builders, "", why),
    )


def role_settings(pgvector: str) -> list[Setting]:
    """Return the search settings of roles; which hnsw.* exist depends on the pgvector version."""
    if not compatibility.has_feature("iterative_scan", pgvector):
        reason = "filters apply after the search: more candidates leave more rows for WHERE agent_id = ..."
        return group("vector", ("hnsw.ef_search", 200, "", reason))
    return group(
        "vector",
        ("hnsw.ef_search", 100, "", "better recall than the default of 40; 200 would take twice the time"),
        ("hnsw.iterative_scan", "strict_order", "", "filtered searches go on to LIMIT or hnsw.max_scan_tuples"),
    )
