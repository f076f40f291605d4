"""Compare the values of io_method (PostgreSQL 18 and newer) where a server reads from disk.

    python -m benchmarks.reads [--vectors N] [--rounds R]

Does IO: one cluster with the prod settings of this machine. Before each statement the server is stopped and its files
are dropped from the kernel's cache. Prints seconds and CPU seconds of the whole server as ratios to `worker`, the value
of prod. Asserts nothing.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks.database import configurations
from benchmarks.harness import benched, forget
from provision.controller.bench.harness import Bench, Configuration, turn
from provision.controller.bench.intervals import ratio
from provision.controller.bench.processes import cpu_seconds
from provision.controller.bench.results import markdown_table
from provision.controller.bench.run import Sizes
from provision.controller.bench.settings import OURS
from tests.clusters import Cluster

BASE = "worker"
METHODS = "SELECT unnest(enumvals) FROM pg_settings WHERE name = 'io_method'"
SCANS = "SET max_parallel_workers_per_gather = {}; SELECT max(vector_dims(embedding)) FROM notes"
STATEMENTS = {
    "scan": SCANS.format(0),
    "scan with a parallel worker": SCANS.format(1),
    "VACUUM": "VACUUM (DISABLE_PAGE_SKIPPING) notes",
    "ANALYZE": "ANALYZE notes",
    "bitmap scans of 50 agents": "SET enable_indexscan = off;"
    " SELECT count(found.content) FROM generate_series(1, 50) AS i, LATERAL ("
    "SELECT content FROM memories WHERE agent_id = md5('agent' || i)::uuid"
    " ORDER BY embedding <=> (SELECT embedding FROM queries WHERE id = 1) LIMIT 10) AS found",
}
Cost = tuple[float, float]
"""Seconds and CPU seconds."""


def cold(bench: Bench[Cluster], configuration: Configuration, statements: str) -> Cost:
    """Return the cost of the last of the statements on a server that has to read everything from disk."""
    forget(bench.cluster.data)
    *before, last = statements.split("; ")
    with bench.served(configuration) as connection:
        for each in before:
            connection.execute(each.encode())
        begun, cpu = time.monotonic(), cpu_seconds(bench.postmaster)
        connection.execute(last.encode())
        return time.monotonic() - begun, cpu_seconds(bench.postmaster) - cpu


def table(found: dict[tuple[str, str], list[Cost]]) -> str:
    """Return a Markdown table: medians of `worker`, and the ratios of the others to it."""
    methods = sorted({name for _, name in found}, key=lambda name: (name != BASE, name))
    parts: dict[str, Callable[[Cost], float]] = {"s": lambda cost: cost[0], "CPU s": lambda cost: cost[1]}
    head, lines = ["", *(f"{name}, {part}" for part in parts for name in methods)], []
    for statement in STATEMENTS:
        line = [statement]
        for of in parts.values():
            base = [of(cost) for cost in found[statement, BASE]]
            line.append(f"{statistics.median(base):.3g}")
            line += [ratio([of(cost) for cost in found[statement, name]], base).shown for name in methods[1:]]
        lines.append(line)
    return markdown_table(head, lines)


def main() -> None:
    """Load, then read with each method, in another order each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=140_000, help="A table of 1 GB by default.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    with benched(Sizes(scale=1, vectors=options.vectors, seconds=1)) as bench:
        if bench.major < 18:
            raise SystemExit(f"io_method is a setting of PostgreSQL 18 and newer: this is {bench.major}")
        bench.load(hard=20_000, index=False)
        with bench.served(Configuration("")) as connection:
            methods = [str(name) for (name,) in connection.execute(METHODS)]
        prod = configurations(bench.major, bench.pgvector, options.vectors)[OURS]
        print(f"PostgreSQL {bench.server}, {options.vectors:,} vectors, {', '.join(methods)}", flush=True)
        found: dict[tuple[str, str], list[Cost]] = {}
        for number in range(options.rounds):
            for statement, text in STATEMENTS.items():
                for name in turn(methods, number):
                    cost = cold(bench, prod.changed(f"io_method = {name}"), text)
                    found.setdefault((statement, name), []).append(cost)
                    print(f"{statement}, {name}: {cost[0]:.2f} s, CPU {cost[1]:.2f} s", flush=True)
        print(table(found))


if __name__ == "__main__":
    main()
