"""Peers' own rules for values that depend on the host: memory in MiB, CPUs, disk in MiB. Pure.

The formulas are those of the sources that the peers' files name. Rounding is theirs too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from provision.tuning import Host

GIB = 1024
UNKNOWN_DISK_MB = 100 * GIB
Rule = Callable[[Host], Mapping[str, str | int]]


def autobase(host: Host) -> dict[str, str | int]:
    """Return a quarter and three quarters of the memory, and workers (roles/common/defaults/main.yml)."""
    return {
        "shared_buffers": f"{int(host.memory_mb * 0.25)}MB",
        "effective_cache_size": f"{int(host.memory_mb * 0.75)}MB",
        "max_worker_processes": max(host.cpus, 16),
        "max_parallel_workers": max(host.cpus // 2, 8),
    }


def pigsty_oltp(host: Host) -> dict[str, str | int]:
    """Return the values that roles/pgsql/templates/oltp.yml computes with pg_shared_buffer_ratio 0.25."""
    buffers = math.ceil(host.memory_mb * 0.25)
    twentieth = min(max(math.ceil((host.disk_mb or UNKNOWN_DISK_MB) / (20 * GIB)), 1), 100)
    connections = 500
    return {
        "shared_buffers": f"{buffers}MB",
        "maintenance_work_mem": f"{math.ceil(buffers * 0.25)}MB",
        "effective_cache_size": f"{host.memory_mb - buffers}MB",
        "work_mem": f"{min(max(buffers // connections, 64), 1024)}MB",
        "max_worker_processes": max(host.cpus + 8, 16) + 8,
        "max_parallel_workers": max(math.ceil(host.cpus * 0.5), 2),
        "max_parallel_workers_per_gather": min(max(math.floor(host.cpus * 0.2), 2), 8),
        "max_parallel_maintenance_workers": max(math.ceil(host.cpus * 0.33), 2),
        "temp_file_limit": f"{twentieth}GB",
        "min_wal_size": f"{twentieth}GB",
        "max_wal_size": f"{4 * twentieth}GB",
        "max_slot_wal_keep_size": f"{6 * twentieth}GB",
    }


def tpa(host: Host) -> dict[str, str | int]:
    """Return a quarter and half of the memory (roles/init/tasks/postgres.yml)."""
    return {
        "shared_buffers": f"{round(host.memory_mb * 0.25)}MB",
        "effective_cache_size": f"{round(host.memory_mb * 0.5)}MB",
    }


def tpa_pages(host: Host) -> int:
    """Return shared_buffers and 3 % of the memory in pages (roles/sys/sysctl/defaults/main.yml)."""
    return int((round(host.memory_mb * 0.25) + host.memory_mb * 0.03) / 2)


def pgtune_web(host: Host) -> dict[str, str | int]:
    """Return pgtune's values for 200 connections."""
    return _pgtune(host, connections=200, divisor=1)


def pgtune_mixed(host: Host) -> dict[str, str | int]:
    """Return pgtune's values for 100 connections."""
    return _pgtune(host, connections=100, divisor=2)


def _pgtune(host: Host, *, connections: int, divisor: int) -> dict[str, str | int]:
    """Return what configurationSlice.js computes; below 4 CPUs it leaves parallelism to the server."""
    total = host.memory_mb * 1024
    buffers = total // 4
    found: dict[str, str | int] = {}
    processes = 8
    if host.cpus >= 4:
        processes, half = host.cpus, min(math.ceil(host.cpus / 2), 4)
        found = {
            "max_worker_processes": processes,
            "max_parallel_workers": processes,
            "max_parallel_workers_per_gather": half,
            "max_parallel_maintenance_workers": half,
        }
    work = math.floor((total - buffers) / ((connections + processes) * 3) / divisor)
    wal = 3 * buffers // 100
    return found | {
        "shared_buffers": f"{buffers}kB",
        "effective_cache_size": f"{total * 3 // 4}kB",
        "maintenance_work_mem": f"{min(total // 16, 8 * 1024**2)}kB",
        "work_mem": f"{max(work, 4096)}kB",
        "wal_buffers": f"{16384 if wal > 14336 else max(wal, 32)}kB",
        "huge_pages": "try" if buffers >= 2 * 1024**2 else "off",
    }


RULES: Mapping[str, Rule] = {
    "autobase": autobase,
    "pigsty oltp": pigsty_oltp,
    "tpa": tpa,
    "pgtune web": pgtune_web,
    "pgtune mixed": pgtune_mixed,
}
HUGE_PAGES: Mapping[str, Callable[[Host], int]] = {"tpa": tpa_pages}
