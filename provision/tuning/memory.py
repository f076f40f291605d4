"""The memory plan: sizes chosen so that the worst case fits. The other modules take their sizes from it.

Pure. With computed sizes (prod) the worst case never exceeds the host's memory: a max_connections that cannot fit is
refused, and the error states the largest that does. With the contract's sizes (dev) an exceeded budget is a warning.

The worst case counts as simultaneous: shared memory, every connection and parallel worker in one hash or two sorts,
every autovacuum worker, and one index build or restore job. More memory never makes a size smaller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from provision.errors import UsageError
from provision.tuning import vector
from provision.tuning.model import NOMINAL_FACTOR, BudgetLine, Request, Setting, group

SYSTEM_MB = (96, 4096)  # kernel, sshd, journal, pooler, exporters: 1/16 of memory within these bounds
BACKEND_MB = 5  # private memory of a busy session without work_mem: catalogue caches, plans, pgvector's scan
CONNECTION_MB = 34  # host memory per connection, up to 100 connections or four per CPU
WORK_MEM_FACTOR = 2  # one hash at hash_mem_multiplier 2, or two sorts, in each session
SHARED_OVERHEAD = 1.06  # buffer descriptors, locks, WAL buffers: `postgres -C shared_memory_size` of 15 to 18
SHARED_FIXED_MB = 16  # the same for a server with few buffers
SHARED_BUFFERS = (1 / 4, 2 / 5)  # a quarter; up to two fifths if the vectors need it and the budget allows it
WORK_MEM_MB = (1.0, 128.0)
WORK_MEM_DIVISOR = 768  # 32 MB on 24 GiB, as in the measured reference
AUTOVACUUM_DIVISOR = 32  # of memory, over all workers
ROUNDING_MB = 4  # the printed parts are rounded up
MAINTENANCE_LOW_MB = 4096  # exceeded only if the expected vectors need it
CONTRACT_MB = 2048  # the contract's values apply from this size
BARE_KB = {
    "shared_buffers": 8,
    "work_mem": 1,
    "maintenance_work_mem": 1,
    "autovacuum_work_mem": 1,
}  # unit of a bare number
UNIT_KB = {"B": 1 / 1024, "kB": 1, "MB": 1024, "GB": 1024**2, "TB": 1024**3}


@dataclass(frozen=True)
class Memory:
    """The plan, in MiB; `work_mem_kb` is in kB because it is multiplied."""

    system: int
    shared_buffers: int
    effective_cache: int
    work_mem_kb: int
    maintenance: int
    build: int
    autovacuum: int
    autovacuum_workers: int
    connections: int
    workers: int
    huge_pages: int
    builders: int
    warnings: tuple[str, ...] = ()

    @property
    def shared(self) -> int:
        """Return the server's total shared memory."""
        return math.ceil(_shared(self.shared_buffers))

    @property
    def budget(self) -> tuple[BudgetLine, ...]:
        """Return the parts of the worst case."""
        sessions = self.connections + self.workers
        autovacuum = self.autovacuum_workers * self.autovacuum
        return (
            BudgetLine("system", self.system, "kernel and other services"),
            BudgetLine("shared memory", self.shared, f"shared_buffers {self.shared_buffers} MB and overhead"),
            BudgetLine(
                "sessions",
                math.ceil(sessions * _session(self.work_mem_kb / 1024)),
                f"{self.connections} connections + {self.workers} parallel workers x "
                f"({BACKEND_MB} MB + {WORK_MEM_FACTOR} x work_mem {self.work_mem_kb} kB)",
            ),
            BudgetLine("autovacuum", autovacuum, f"{self.autovacuum_workers} workers x {self.autovacuum} MB"),
            BudgetLine("maintenance", self.build, "one index build or restore job"),
        )


def plan(request: Request) -> Memory:
    """Divide the host's memory. Raises UsageError for a max_connections that cannot fit (prod)."""
    return _computed(request) if request.computed else _contract(request)


def with_overrides(request: Request, planned: Memory, given: Mapping[str, str]) -> Memory:
    """Apply the user's values to a plan, so that huge pages and the worst case account for them.

    Values that are not sizes or numbers are ignored here: the server's catalogue refuses them later.
    """
    sizes = {name: size for name in BARE_KB if (size := kilobytes(given.get(name, ""), BARE_KB[name])) is not None}
    buffers = sizes.get("shared_buffers", planned.shared_buffers * 1024) // 1024
    maintenance = sizes.get("maintenance_work_mem", planned.maintenance * 1024) // 1024
    new = "maintenance_work_mem" in sizes
    return replace(
        planned,
        shared_buffers=buffers,
        work_mem_kb=sizes.get("work_mem", planned.work_mem_kb),
        maintenance=maintenance,
        build=math.ceil(maintenance * vector.build_factor(request)) if new else planned.build,
        autovacuum=sizes.get("autovacuum_work_mem", planned.autovacuum * 1024) // 1024,
        autovacuum_workers=number(given.get("autovacuum_max_workers", ""), planned.autovacuum_workers),
        workers=number(given.get("max_parallel_workers", ""), planned.workers),
        huge_pages=_huge_pages(request, _shared(buffers)),
    )


def kilobytes(text: str, bare: int) -> int | None:
    """Return a size in kB, or None if it is none; a number without a unit counts `bare` kB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|B|kB|MB|GB|TB)", text.strip())
    return int(float(match[1]) * (UNIT_KB[match[2]] if match[2] else bare)) if match else None


def number(text: str, otherwise: int) -> int:
    """Return a whole number, or `otherwise` if the text is none."""
    return int(text) if text.isdecimal() else otherwise


def _computed(request: Request) -> Memory:
    """Divide by shares. Bounds apply before rounding, so that no part shrinks as memory grows."""
    host, total = request.host, request.host.steady_mb
    system = max(SYSTEM_MB[0], min(total / 16, SYSTEM_MB[1]))
    workers = max(1.0, min(host.cpus, total / 512))
    default = max(10.0, min(total / CONNECTION_MB, max(100, min(4 * host.cpus, total / 256))))
    sessions = (request.max_connections or default) + workers
    cleaners = _autovacuum_workers(host.cpus, total)
    cleaning = cleaners * max(16, min(total / AUTOVACUUM_DIVISOR / cleaners, 1024))
    work_mem = min(max(total / WORK_MEM_DIVISOR, WORK_MEM_MB[0]), WORK_MEM_MB[1])

    rest = total - system - cleaning - _shared(total * SHARED_BUFFERS[0]) - ROUNDING_MB
    spare = (rest - sessions * _session(work_mem)) / vector.build_factor(request)
    known = 0 if request.vectors is None else min(total / 4, spare)
    build = vector.build_memory(
        request, low=max(48, min(total / 16, MAINTENANCE_LOW_MB)), high=max(48, total / 8, known)
    )
    room = rest - build.worst_mb
    if room < sessions * _session(WORK_MEM_MB[0]) - ROUNDING_MB / 2:
        fits = int(room / _session(WORK_MEM_MB[0]) - workers)
        raise UsageError(
            "max_connections does not fit in this host's memory",
            where="max_connections",
            seen=f"{request.max_connections} on {total} MB",
            allowed=f"up to {fits}; PgBouncer shares them among many more clients",
        )
    work_mem = max(WORK_MEM_MB[0], min(work_mem, (room / sessions - BACKEND_MB) / WORK_MEM_FACTOR))
    hot = 2 * vector.index_mb(request)  # the index, and the embeddings in the table
    base, most = (total * share for share in SHARED_BUFFERS)
    left = (room - sessions * _session(work_mem)) / SHARED_OVERHEAD
    buffers = _floor(max(base, min(hot, most, base + left)), 8)
    return Memory(
        system=math.ceil(system),
        shared_buffers=buffers,
        effective_cache=_floor(total * 3 / 4, 16),
        work_mem_kb=int(work_mem * 1024) if work_mem < 4 else int(work_mem) * 1024,
        maintenance=build.maintenance_mb,
        build=build.used_mb,
        autovacuum=int(cleaning / cleaners),
        autovacuum_workers=cleaners,
        connections=request.max_connections or int(default / 5) * 5,
        workers=int(workers),
        huge_pages=_huge_pages(request, _shared(buffers)),
        builders=build.workers,
        warnings=build.warnings,
    )


def _contract(request: Request) -> Memory:
    """Return the contract's values, scaled down on a smaller host."""
    host = request.host
    small = host.memory_mb < CONTRACT_MB * NOMINAL_FACTOR
    scale = host.steady_mb / CONTRACT_MB if small else 1.0
    build = vector.build_memory(request, low=64 * scale, high=256 * scale)
    memory = Memory(
        system=math.ceil(max(SYSTEM_MB[0], min(host.memory_mb / 16, SYSTEM_MB[1]))),
        shared_buffers=_floor(256 * scale, 8),
        effective_cache=_floor(1024 * scale, 16),
        work_mem_kb=int(16 * scale) * 1024,
        maintenance=build.maintenance_mb,
        build=build.used_mb,
        autovacuum=max(16, int(64 * scale)),
        autovacuum_workers=_autovacuum_workers(host.cpus, host.memory_mb),
        connections=request.max_connections or int(100 * scale),
        workers=max(1, min(host.cpus, host.memory_mb // 512)),
        huge_pages=0,
        builders=build.workers,
    )
    worst, warnings = sum(line.mb for line in memory.budget), list(build.warnings)
    if small:
        warnings.append(f"the recommended values need 2 GiB; scaled to {scale:.0%} for {host.memory_mb} MB")
    if worst > host.memory_mb:
        warnings.append(f"the worst case needs {worst} of {host.memory_mb} MB: acceptable for development")
    return Memory(**{**vars(memory), "warnings": tuple(warnings)})


def _shared(buffers: float) -> float:
    return buffers * SHARED_OVERHEAD + SHARED_FIXED_MB


def _session(work_mem: float) -> float:
    return BACKEND_MB + WORK_MEM_FACTOR * work_mem


def _floor(value: float, step: int) -> int:
    return int(value // step) * step


def _autovacuum_workers(cpus: int, memory_mb: int) -> int:
    """Return three plus one per 16 CPUs, or fewer so that each has at least 16 MB."""
    return min(8, 3 + cpus // 16, max(2, memory_mb // (16 * AUTOVACUUM_DIVISOR)))


def _huge_pages(request: Request, shared_mb: float) -> int:
    """Return the number of 2 MiB pages for shared memory; 0 if disabled or not worthwhile."""
    worth_it = request.host.memory_mb >= 2048 * NOMINAL_FACTOR
    return math.ceil(shared_mb / 2) if worth_it and request.choices.huge_pages != "off" else 0


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return the memory settings."""
    if request.computed:
        total, connections = request.host.steady_mb, memory.connections
        buffers = f"{memory.shared_buffers / total:.0%} of {total} MB; more only if the vectors fill it"
        cache = "three quarters of memory can cache pages; a lower value discourages index scans"
        work = f"per sort; each of {connections} connections may use it twice at once"
    else:
        buffers = cache = work = "the recommended value"
    return group(
        "memory",
        ("shared_buffers", memory.shared_buffers, "MB", buffers),
        ("effective_cache_size", memory.effective_cache, "MB", cache),
        ("work_mem", memory.work_mem_kb, "kB", work),
        ("hash_mem_multiplier", 2.0, "", "spilling a hash costs more than spilling a sort; the default in 14 is 1"),
        ("autovacuum_work_mem", memory.autovacuum, "MB", "per worker; the default is maintenance_work_mem each"),
        ("huge_pages", *_huge_setting(request, memory)),
    )


def _huge_setting(request: Request, memory: Memory) -> tuple[str, str, str]:
    needed = memory.huge_pages
    if request.choices.huge_pages == "off":
        return "off", "", "from the profile"
    if not needed:
        return "off", "", "too little shared memory to benefit"
    # Not from the pages reserved now: the next run or a restart would see another number.
    if request.host.container:
        return "off", "", "a container cannot reserve them; set to try if its host reserves enough"
    reason = f"uses {needed} pages of 2 MB if vm.nr_hugepages reserves them; starts without them too"
    return request.choices.huge_pages, "", reason
