"""Measure how costs grow with vectors, agents, rows and migrations; print a table and write a plot with exponents.

    python -m benchmarks.growth [--only vectors agents rows migrations] [--largest SHARE] [--into DIRECTORY]

Does IO: clusters with the prod settings of this machine, in temporary directories. Each size is measured once, after
the smaller ones; `--largest 0.1` leaves out sizes above a tenth of the largest. Asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks import filtered, migrate, schema
from benchmarks.database import OURS, configurations
from benchmarks.fit import Series, plot, table
from benchmarks.harness import Bench
from benchmarks.processes import cpu_seconds
from provision.controller.bench.run import Sizes, build, recall
from tests.clusters import Cluster

VECTORS = (10_000, 40_000, 160_000, 640_000)
AGENTS = (10, 100, 1_000, 10_000)
ROWS = (100_000, 1_000_000, 10_000_000)
MIGRATIONS = (10, 100, 1_000, 3_000)
AGENT_VECTORS = 40_000
SECONDS = 5
Point = tuple[str, str, float, float]
"""Name, unit, size and cost."""


def vectors(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Build and search the easy data set."""
    for count in sizes:
        bench = Bench(Sizes(scale=1, vectors=count, seconds=SECONDS))
        try:
            bench.load(hard=1_000, index=False)
            configuration = configurations(bench.major, bench.pgvector, count)[OURS]
            with bench.served(configuration) as connection:
                cpu = cpu_seconds(bench.postmaster)
                yield "HNSW build", "s", count, build(connection, bench.easy)
                yield "HNSW build, CPU", "s", count, cpu_seconds(bench.postmaster) - cpu
                row = connection.execute("SELECT pg_relation_size('notes_embedding_idx') / 2^20").fetchone()
                yield "index", "MB", count, float(str(row[0])) if row else 0
                yield "recall at ef_search 40", "of 10", count, 10 * recall(connection, 40, "notes", "note_queries")
                cpu = cpu_seconds(bench.postmaster)
                rate = bench.stages()["easy search, ef 40"](bench.pgbench)
                yield "search, p95", "ms", count, rate.p95
                yield "search, CPU", "us", count, 1e6 * (cpu_seconds(bench.postmaster) - cpu) / rate.transactions
        finally:
            bench.cluster.remove()


def agents(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Search one agent's memories among as many memories, which more agents share."""
    bench = Bench(Sizes(scale=1, vectors=AGENT_VECTORS, seconds=SECONDS))
    try:
        bench.load(easy=200)
        given = filtered.settings(bench.pgvector)
        with bench.served(configurations(bench.major, bench.pgvector, AGENT_VECTORS)[OURS]) as connection:
            for count in sizes:
                filtered.share(connection, count)
                build(connection, bench.builds)
                print(f"agents {count:,}: {filtered.plan(connection, given)}, {given}", flush=True)
                yield "an agent's search, recall", "of 10", count, 10 * filtered.recall(connection, count, given)
                cpu = cpu_seconds(bench.postmaster)
                rate = filtered.rate(bench.pgbench, SECONDS, count, given)
                cpu = cpu_seconds(bench.postmaster) - cpu
                yield "an agent's search, p95", "ms", count, rate.p95
                yield "an agent's search, CPU", "us", count, 1e6 * cpu / rate.transactions
    finally:
        bench.cluster.remove()


def rows(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Time retention and the views; each table of `benchmarks.schema` has as many rows."""
    named = {
        "retention of activities": "retention: activities older than 90 days",
        "cleanup_expired_sessions()": "cleanup_expired_sessions()",
        "agent_stats, one agent": "agent_stats, one agent",
        "recent_feedback_summary": "recent_feedback_summary",
    }
    for count in sizes:
        cluster = Cluster.create(schema.SETTINGS)
        try:
            cluster.psql("CREATE ROLE minion LOGIN; CREATE DATABASE minion OWNER minion")
            cluster.psql('CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"', "minion")
            for path in sorted(schema.MIGRATIONS.glob("*.up.sql")):
                cluster.psql(path.read_text(), "minion", "minion")
            cluster.psql(schema.FILL.format(rows=count), "minion", "minion")
            cluster.psql("VACUUM ANALYZE; CHECKPOINT", "minion")
            taken = schema.measure(cluster.url("minion", "minion"), prepare=True, only=tuple(named.values()))
            for name, statement in named.items():
                yield name, "ms", count, taken[statement]
        finally:
            cluster.remove()


def migrations(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Apply that many small migrations, and ask for the status afterwards."""
    cluster = Cluster.create({"fsync": "on"})
    try:
        for count in sizes:
            cluster.psql(f"CREATE DATABASE growth_{count}")
            with tempfile.TemporaryDirectory() as folder:
                where = migrate.write(Path(folder), count) / "ours"
                target = ("--path", str(where), "--database", cluster.url(f"growth_{count}"))
                for name, word in (("migrate up", "up"), ("migrate status", "status")):
                    begun = time.monotonic()
                    migrate.run(*migrate.OURS, word, *target)
                    yield name, "s", count, time.monotonic() - begun
    finally:
        cluster.remove()


KINDS: dict[str, tuple[Callable[[tuple[int, ...]], Iterator[Point]], tuple[int, ...]]] = {
    "vectors": (vectors, VECTORS),
    "agents": (agents, AGENTS),
    "rows": (rows, ROWS),
    "migrations": (migrations, MIGRATIONS),
}


def measured(only: list[str], largest: float) -> list[Series]:
    """Measure each kind of size and return its series."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for kind in only:
        work, sizes = KINDS[kind]
        for name, unit, size, cost in work(tuple(size for size in sizes if size <= largest * max(sizes))):
            print(f"{kind} {size:,}: {name} {cost:.4g} {unit}", flush=True)
            found.setdefault((name, kind, unit), []).append((size, cost))
    return [Series(*key, tuple(points)) for key, points in found.items()]


def main() -> None:
    """Measure, print the table, write growth.svg and growth.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--largest", type=float, default=1.0, help="Largest size, as a share of the default's.")
    parser.add_argument("--into", type=Path, default=Path(), help="Directory for growth.svg and growth.json.")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    every = measured(options.only, options.largest)
    print(table(every))
    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "growth.svg").write_text(plot(every))
    (options.into / "growth.json").write_text(json.dumps([asdict(series) for series in every], indent=1) + "\n")


if __name__ == "__main__":
    main()
