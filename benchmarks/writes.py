"""Measure what an HNSW index costs a table that is written: inserts, their WAL, and VACUUM after deletes.

    python -m benchmarks.writes [--vectors N] [--seconds S] [--rounds R]

Does IO: one cluster with the prod settings of this machine and the easy data set. Each round inserts with eight
clients, one row a transaction, then deletes a tenth of the rows and vacuums; once without the index, and once with it,
newly built. A checkpoint precedes each step, so the WAL has an image of each page that is written. Asserts nothing.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from dataclasses import astuple, dataclass

from benchmarks.database import configurations
from benchmarks.harness import benched
from provision import database
from provision.controller.bench.harness import Bench, written
from provision.controller.bench.processes import cpu_seconds
from provision.controller.bench.results import markdown_table
from provision.controller.bench.run import Sizes, build
from provision.controller.bench.settings import OURS
from tests.clusters import Cluster

INSERT = """\\set a random(1, {vectors})
\\set b random(1, {vectors})
INSERT INTO notes SELECT nextval('more_notes'), a.embedding + b.embedding
FROM note_copies AS a, note_copies AS b WHERE a.id = :a AND b.id = :b;
"""
HEAD = (
    "", "inserts per second", "p95, ms", "CPU, µs each", "WAL, kB each", "VACUUM, s", "its CPU, s", "its WAL, MB",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Of one round: inserts per second, their p95 in ms, CPU us and WAL kB of each; VACUUM's s, CPU s and WAL MB."""

    rate: float
    p95_ms: float
    cpu_us: float
    wal_kb: float
    vacuum_s: float
    vacuum_cpu_s: float
    vacuum_wal_mb: float


def measure(bench: Bench[Cluster], connection: database.Connection, seconds: float, number: int) -> Cost:
    """Insert, delete and vacuum."""
    connection.execute("CHECKPOINT")
    cpu, wal = cpu_seconds(bench.postmaster), written(connection)
    rate = bench.pgbench.measure(seconds, 8, scripts={INSERT.format(vectors=bench.sizes.vectors): 1})
    cpu, wal = cpu_seconds(bench.postmaster) - cpu, written(connection) - wal
    connection.execute("DELETE FROM notes WHERE id %% 10 = %s", (number,))
    connection.execute("CHECKPOINT")
    begun, vacuum_cpu, vacuum_wal = time.monotonic(), cpu_seconds(bench.postmaster), written(connection)
    connection.execute("VACUUM notes")
    return Cost(
        rate.tps,
        rate.p95,
        1e6 * cpu / rate.transactions,
        wal / rate.transactions / 1024,
        time.monotonic() - begun,
        cpu_seconds(bench.postmaster) - vacuum_cpu,
        (written(connection) - vacuum_wal) / 2**20,
    )


def table(found: dict[str, list[Cost]]) -> str:
    """Return a Markdown table of medians."""
    lines = []
    for name, costs in found.items():
        middle = (statistics.median(values) for values in zip(*map(astuple, costs), strict=True))
        lines.append([name, *(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in middle)])
    return markdown_table(HEAD, lines)


def main() -> None:
    """Load, then write without and with the index in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    with benched(Sizes(scale=1, vectors=options.vectors, seconds=options.seconds)) as bench:
        bench.load(hard=1_000, index=False)
        found: dict[str, list[Cost]] = {"without an index": [], "with HNSW": []}
        with bench.served(configurations(bench.major, bench.pgvector, options.vectors)[OURS]) as connection:
            connection.execute("CREATE TABLE note_copies (LIKE notes INCLUDING ALL)")
            connection.execute("INSERT INTO note_copies SELECT * FROM notes")
            connection.execute("CREATE SEQUENCE more_notes START 10000001")
            connection.execute("VACUUM ANALYZE note_copies")
            print(f"PostgreSQL {bench.server}, pgvector {bench.pgvector}, {options.vectors:,} vectors", flush=True)
            for number in range(options.rounds):
                for name, costs in found.items():
                    connection.execute("TRUNCATE notes")
                    connection.execute("INSERT INTO notes SELECT * FROM note_copies")
                    connection.execute("VACUUM ANALYZE notes")
                    connection.execute("DROP INDEX IF EXISTS notes_embedding_idx")
                    if name == "with HNSW":
                        build(connection, bench.easy)
                    costs.append(measure(bench, connection, options.seconds, number))
                    print(f"{name}: {costs[-1]}", flush=True)
        print(table(found))


if __name__ == "__main__":
    main()
