"""The memory plan: how much goes where, so that the worst case fits. Every other group takes its sizes from here.

Pure. In prod the worst case never exceeds the host's memory: a max_connections that cannot fit is refused with the
largest that does. In dev the contract's values stand and an exceeded budget is a warning.

Reckoned as used at the same moment: shared memory, every allowed connection and parallel worker in one hash or two
sorts, every autovacuum worker, and one index build or restore job. Sizes grow with memory and never fall.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from provision.errors import UsageError
from provision.tuning import vector
from provision.tuning.model import NOMINAL_FACTOR, BudgetLine, Request, Setting, group

SYSTEM_MB = (96, 4096)  # kernel, sshd, journal, pooler, exporters: 1/16 of the memory within these bounds
BACKEND_MB = 5  # private memory of a busy session beside work_mem: catalogue caches, plans, pgvector's scan
CONNECTION_MB = 34  # one connection for so much of the host, up to 100 or four per CPU
WORK_MEM_FACTOR = 2  # one hash at hash_mem_multiplier 2, or two sorts, in each session at once
SHARED_OVERHEAD = 1.06  # buffer descriptors, locks, WAL buffers: `postgres -C shared_memory_size` of 15 to 18
SHARED_FIXED_MB = 16  # the same for a server with few buffers
SHARED_BUFFERS = (1 / 4, 2 / 5)  # a quarter; up to two fifths where the vectors need it and the budget allows it
WORK_MEM_MB = (1.0, 128.0)
WORK_MEM_DIVISOR = 768  # 32 MB on 24 GiB, as the reference that we measured
AUTOVACUUM_DIVISOR = 32  # of the memory, over all workers
ROUNDING_MB = 4  # the printed parts are rounded up
MAINTENANCE_LOW_MB = 4096  # more only where the expected vectors need it
CONTRACT_MB = 2048  # the contract's values hold from here on
BARE_KB = {"shared_buffers": 8, "work_mem": 1, "maintenance_work_mem": 1, "autovacuum_work_mem": 1}  # without a unit
UNIT_KB = {"B": 1 / 1024, "kB": 1, "MB": 1024, "GB": 1024**2, "TB": 1024**3}


@dataclass(frozen=True)
class Memory:
    """The plan, in MiB; `work_mem_kb` is finer because it is multiplied."""

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
        """Return the whole of the server's shared memory."""
        return math.ceil(_shared(self.shared_buffers))

    @property
    def budget(self) -> tuple[BudgetLine, ...]:
        """Return the worst case, part by part."""
        sessions = self.connections + self.workers
        autovacuum = self.autovacuum_workers * self.autovacuum
        return (
            BudgetLine("system", self.system, "kernel and the services beside the server"),
            BudgetLine("shared memory", self.shared, f"shared_buffers {self.shared_buffers} MB and its overhead"),
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


def told(request: Request, planned: Memory, given: Mapping[str, str]) -> Memory:
    """Put the user's own values into a plan, so that huge pages and the worst case are reckoned with them.

    What does not read as a size or a number is left out: the server's catalogue refuses it.
    """
    sizes = {name: size for name in BARE_KB if (size := _kilobytes(given.get(name, ""), BARE_KB[name])) is not None}
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
        autovacuum_workers=_number(given.get("autovacuum_max_workers", ""), planned.autovacuum_workers),
        workers=_number(given.get("max_parallel_workers", ""), planned.workers),
        huge_pages=_huge_pages(request, _shared(buffers)),
    )


def _kilobytes(text: str, bare: int) -> int | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|B|kB|MB|GB|TB)", text.strip())
    return int(float(match[1]) * (UNIT_KB[match[2]] if match[2] else bare)) if match else None


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() else otherwise


def _computed(request: Request) -> Memory:
    """Divide by shares, with bounds reckoned before rounding, so that no part falls while the memory grows."""
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
            allowed=f"up to {fits}; through PgBouncer many more clients share them",
        )
    work_mem = max(WORK_MEM_MB[0], min(work_mem, (room / sessions - BACKEND_MB) / WORK_MEM_FACTOR))
    hot = 2 * vector.index_mb(request)  # the index, and the embeddings in their table
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
    """Give the contract's values; a smaller host gets the same shares of what it has."""
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
        warnings.append(f"{host.memory_mb} MB: the contract's values need 2 GiB and are scaled down to {scale:.0%}")
    if worst > host.memory_mb:
        warnings.append(f"all connections at once could need {worst} of {host.memory_mb} MB: fine for development")
    return Memory(**{**vars(memory), "warnings": tuple(warnings)})


def _shared(buffers: float) -> float:
    return buffers * SHARED_OVERHEAD + SHARED_FIXED_MB


def _session(work_mem: float) -> float:
    return BACKEND_MB + WORK_MEM_FACTOR * work_mem


def _floor(value: float, step: int) -> int:
    return int(value // step) * step


def _autovacuum_workers(cpus: int, memory_mb: int) -> int:
    """Return three and one for each 16 CPUs, fewer where each would have less than 16 MB."""
    return min(8, 3 + cpus // 16, max(2, memory_mb // (16 * AUTOVACUUM_DIVISOR)))


def _huge_pages(request: Request, shared_mb: float) -> int:
    """Return how many 2 MiB pages hold the shared memory; 0 where they are not wanted or not worth it."""
    worth_it = request.host.memory_mb >= 2048 * NOMINAL_FACTOR
    return math.ceil(shared_mb / 2) if worth_it and request.choices.huge_pages != "off" else 0


def settings(request: Request, memory: Memory) -> list[Setting]:
    """Return the sizes."""
    if request.computed:
        total, connections = request.host.steady_mb, memory.connections
        buffers = f"{memory.shared_buffers / total:.0%} of {total} MB; more only where the vectors fill it"
        cache = "three quarters of the memory can cache pages; lower makes the planner leave indexes"
        work = f"for each sort; {connections} connections may use it twice at once"
    else:
        buffers = cache = work = "the contract's value"
    return group(
        "memory",
        ("shared_buffers", memory.shared_buffers, "MB", buffers),
        ("effective_cache_size", memory.effective_cache, "MB", cache),
        ("work_mem", memory.work_mem_kb, "kB", work),
        ("hash_mem_multiplier", 2.0, "", "hashes spill dearer than sorts; 14 still has 1"),
        ("autovacuum_work_mem", memory.autovacuum, "MB", "per worker; otherwise each takes maintenance_work_mem"),
        ("huge_pages", *_huge_setting(request, memory)),
    )


def _huge_setting(request: Request, memory: Memory) -> tuple[str, str, str]:
    needed = memory.huge_pages
    if request.choices.huge_pages == "off":
        return "off", "", "by the profile"
    if not needed:
        return "off", "", "too little shared memory to be worth a reservation"
    # Not by what is reserved now: another run, or a restart, would find another number.
    if request.host.container:
        return "off", "", "a container's kernel is its host's; where that reserves enough, set it to try"
    reason = f"takes {needed} pages of 2 MB if vm.nr_hugepages has them reserved; starts without them too"
    return request.choices.huge_pages, "", reason
