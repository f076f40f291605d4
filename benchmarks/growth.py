"""Measure how costs grow, print a table and write a plot with exponents.

    python -m benchmarks.growth [--only KIND ...] [--largest SHARE] [--into DIRECTORY]

The kinds of size are vectors, agents, rows, migrations, databases and hosts.

Does IO: clusters in temporary directories, with the prod settings of this machine for vectors and agents, the
recommended values for rows and the defaults for migrations; and sandbox hosts: one with the prod profile and a local
repository for databases, up to six with the dev profile for hosts, which share this machine's CPUs. Each size is
measured once, after the smaller ones; `--largest 0.1` leaves out sizes above a tenth of the largest. Kinds that only an
earlier run into the same directory measured stay in the table and the plot. Asserts nothing.
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

from benchmarks import audit, backup, filtered, migrate, provisioning, schema
from benchmarks.database import configurations
from benchmarks.fit import Series, plot, table
from benchmarks.harness import benched
from benchmarks.hosts import BIN, fresh_hosts, production_host
from provision.controller.bench.processes import cpu_seconds, peak_memory
from provision.controller.bench.run import Sizes, build, recall
from provision.controller.bench.settings import OURS
from tests.clusters import Cluster

VECTORS = (10_000, 40_000, 160_000, 640_000)
AGENTS = (10, 100, 1_000, 10_000)
ROWS = (100_000, 1_000_000, 10_000_000)
MIGRATIONS = (10, 100, 1_000, 3_000)
GIGABYTES = (1, 4, 8, 16)
HOSTS = (1, 3, 6)
AGENT_VECTORS = 40_000
SECONDS = 5
Point = tuple[str, str, float, float]
"""Name, unit, size and cost."""


def vectors(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Build and search the easy data set."""
    for count in sizes:
        with benched(Sizes(scale=1, vectors=count, seconds=SECONDS)) as bench:
            bench.load(hard=1_000, index=False)
            configuration = configurations(bench.major, bench.pgvector, count)[OURS]
            with bench.served(configuration) as connection:
                cpu = cpu_seconds(bench.postmaster)
                with peak_memory(bench.postmaster) as peak:
                    seconds = build(connection, bench.easy)
                yield "HNSW build", "s", count, seconds
                yield "HNSW build, CPU", "s", count, cpu_seconds(bench.postmaster) - cpu
                yield "HNSW build, memory", "MB", count, peak[0]
                row = connection.execute("SELECT pg_relation_size('notes_embedding_idx') / 2^20").fetchone()
                yield "index", "MB", count, float(str(row[0])) if row else 0
                yield "recall at ef_search 40", "of 10", count, 10 * recall(connection, 40, "notes", "note_queries")
                cpu = cpu_seconds(bench.postmaster)
                rate = bench.stages()["easy search, ef 40"](bench.pgbench)
                yield "search, p95", "ms", count, rate.p95
                yield "search, CPU", "us", count, 1e6 * (cpu_seconds(bench.postmaster) - cpu) / rate.transactions


def agents(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Search one agent's memories among as many memories, which more agents share."""
    with benched(Sizes(scale=1, vectors=AGENT_VECTORS, seconds=SECONDS)) as bench:
        bench.load(easy=200)
        usual = filtered.usual(bench.pgvector)
        with bench.served(configurations(bench.major, bench.pgvector, AGENT_VECTORS)[OURS]) as connection:
            for count in sizes:
                filtered.share(connection, count)
                build(connection, bench.builds)
                print(f"agents {count:,}: {filtered.plan(connection, usual)}, {usual.settings}", flush=True)
                yield "an agent's search, recall", "of 10", count, 10 * filtered.recall(connection, count, usual)
                for name, search in {"an agent's search": usual, "the same, exact": filtered.EXACT}.items():
                    cpu = cpu_seconds(bench.postmaster)
                    rate = filtered.rate(bench.pgbench, SECONDS, count, search)
                    cpu = cpu_seconds(bench.postmaster) - cpu
                    yield f"{name}, p95", "ms", count, rate.p95
                    yield f"{name}, CPU", "us", count, 1e6 * cpu / rate.transactions


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


def databases(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Back up, restore and restore-test a database of as many GB, on a host of its own for each size."""
    for count in sizes:
        with production_host("bench-growth", backup.MEMORY, backup.VARIABLES) as host:
            backup.prepare(host, count * 1024)
            restore = f"pgbackrest --stanza={host.name} --pg1-path={backup.SCRATCH}/new --archive-mode=off restore"
            for name, before, command in (
                ("full backup", "true", "provision backup take --type full"),
                ("diff backup after 2 % of notes", backup.CHANGE, "provision backup take --type diff"),
                ("restore", f"mkdir -p {backup.SCRATCH} && {backup.NEW}", restore),
                ("restore test", f"rm -rf {backup.SCRATCH}", "provision backup drill --type physical"),
            ):
                host.run(before)
                yield name, "s", count, backup.timed(host, command)


def hosts(sizes: tuple[int, ...]) -> Iterator[Point]:
    """Run site.yml twice and audit as many hosts, made for each size."""
    for count in sizes:
        with fresh_hosts(*(f"db{number}" for number in range(1, count + 1))) as made:
            with provisioning.site("dev", made) as converge:
                for name in ("first site.yml", "second site.yml"):
                    begun = time.monotonic()
                    converge()
                    yield name, "s", count, time.monotonic() - begun
            inventories = ("-i", "inventories/dev", "-i", str(made.inventory))
            words = (str(BIN / "provision"), "audit", *inventories, "--json")
            yield "provision audit", "s", count, audit.timed(*words, allowed=(0, 3))


KINDS: dict[str, tuple[Callable[[tuple[int, ...]], Iterator[Point]], tuple[int, ...]]] = {
    "vectors": (vectors, VECTORS),
    "agents": (agents, AGENTS),
    "rows": (rows, ROWS),
    "migrations": (migrations, MIGRATIONS),
    "databases": (databases, GIGABYTES),
    "hosts": (hosts, HOSTS),
}


def chosen(kind: str, largest: float) -> tuple[int, ...]:
    """Return the sizes up to a share of the largest."""
    sizes = KINDS[kind][1]
    return tuple(size for size in sizes if size <= largest * max(sizes))


def measured(only: list[str], largest: float) -> list[Series]:
    """Measure each kind of size and return its series."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for kind in only:
        for name, unit, size, cost in KINDS[kind][0](chosen(kind, largest)):
            print(f"{kind} {size:,}: {name} {cost:.4g} {unit}", flush=True)
            found.setdefault((name, kind, unit), []).append((size, cost))
    return [Series(*key, tuple(points)) for key, points in found.items()]


def read(path: Path) -> list[Series]:
    """Read the series that an earlier run wrote."""
    return [
        Series(each["name"], each["of"], each["unit"], tuple((size, cost) for size, cost in each["points"]))
        for each in json.loads(path.read_text())
    ]


def main() -> None:
    """Measure, print the table, write growth.svg and growth.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--largest", type=float, default=1.0, help="Largest size, as a share of the default's.")
    parser.add_argument("--into", type=Path, default=Path(), help="Directory for growth.svg and growth.json.")
    options = parser.parse_args()
    if few := [kind for kind in options.only if len(chosen(kind, options.largest)) < 2]:
        parser.error(f"--largest {options.largest:g} leaves fewer than two sizes of {', '.join(few)}: no exponent")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    options.into.mkdir(parents=True, exist_ok=True)
    path = options.into / "growth.json"
    earlier = read(path) if path.exists() else []
    every = [series for series in earlier if series.of not in options.only] + measured(options.only, options.largest)
    print(table(every))
    (options.into / "growth.svg").write_text(plot(every))
    path.write_text(json.dumps([asdict(series) for series in every], indent=1) + "\n")


if __name__ == "__main__":
    main()
