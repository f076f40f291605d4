"""Measure searches in the first seconds after a restart, with and without autoprewarm, and on files out of memory.

    python -m benchmarks.restart [--vectors N] [--seconds S] [--rounds R]

Does IO: one cluster, whose index is searched until it is cached and whose server is then stopped. The kernel's cache of
its files is dropped as after a reboot or on another host, or kept as after a restart of the service. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.database import OURS, configurations, turn
from benchmarks.harness import Bench, Configuration
from provision.controller.bench.pgbench import Rate
from provision.controller.bench.run import Sizes

WARM_S = 20
PARTS = ("tps", "p50", "p95", "p99")
LIBRARIES = "shared_preload_libraries = 'pg_stat_statements,auto_explain{}'"
CASES = {
    "kernel's cache kept, without": ("", False),
    "kernel's cache kept, autoprewarm": (",pg_prewarm", False),
    "kernel's cache lost, without": ("", True),
    "kernel's cache lost, autoprewarm": (",pg_prewarm", True),
}


def forget(data: Path) -> None:
    """Drop the files of a stopped server from the kernel's cache (posix_fadvise(2)); other files stay cached."""
    for path in data.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def restarted(bench: Bench, configuration: Configuration, seconds: float, *, lost: bool) -> Rate:
    """Warm the cache by searches, restart, and return what clients see in the first seconds."""
    bench.sizes = replace(bench.sizes, seconds=WARM_S)
    with bench.served(configuration) as connection:
        connection.execute(
            "SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relname IN ('notes', 'notes_embedding_idx')"
        )
        bench.stages()["easy search, ef 40"](bench.pgbench)
    if lost:
        forget(bench.cluster.data)
    with bench.served(configuration):
        bench.sizes = replace(bench.sizes, seconds=seconds)
        return bench.stages()["easy search, ef 40"](bench.pgbench)


def main() -> None:
    """Load, then restart in rotating order; print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=280_000, help="An index of 2 GB by default.")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    bench = Bench(Sizes(scale=1, vectors=options.vectors, seconds=WARM_S))
    try:
        bench.load(hard=1000)
        with bench.served(Configuration("")) as connection:
            row = connection.execute("SELECT pg_relation_size('notes_embedding_idx') / 2^20").fetchone() or (0,)
        prod = configurations(bench.major, bench.pgvector, options.vectors)[OURS]
        print(f"PostgreSQL {bench.server}, {options.vectors:,} vectors, index {float(row[0]):,.0f} MB", flush=True)
        found: dict[str, list[Rate]] = {}
        for number in range(options.rounds):
            for name in turn(list(CASES), number):
                library, lost = CASES[name]
                changed = prod.changed(LIBRARIES.format(library))
                found.setdefault(name, []).append(restarted(bench, changed, options.seconds, lost=lost))
                print(f"{name:34} {found[name][-1]}", flush=True)
        title = f"first {options.seconds:g} s"
        print(f"\n{title:34}{'per second':>12}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
        for name, rates in found.items():
            tps, *latencies = (statistics.median(getattr(rate, part) for rate in rates) for part in PARTS)
            print(f"{name:34}{tps:12,.0f}" + "".join(f"{value:9.1f}" for value in latencies))
    finally:
        bench.cluster.remove()


if __name__ == "__main__":
    main()
