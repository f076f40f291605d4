"""Compare settings: the contract's, a reference's and our prod profile's, as ratios to stock Debian.

    python -m benchmarks.database [--vectors N] [--seconds S] [--rounds R] [--only NAME ...]

Does IO: runs one cluster with one data set on this machine, restarted with each configuration in turn (several rounds,
medians). Reserves the huge pages of a configuration while its server runs, and restores the old number. The server must
then use them (huge_pages = on): otherwise it would silently run without huge pages if another process took some. fsync
is on. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provision import database
from provision.compatibility import PARALLEL_BUILD
from provision.controller.bench import place
from provision.controller.bench.pgbench import Pgbench
from provision.controller.bench.run import Sizes, build, recall, stages
from provision.tuning import Host, tune
from provision.tuning.detect import detect
from tests.clusters import Cluster, free_port, install

HERE = Path(__file__).parent
PAGES = Path("/proc/sys/vm/nr_hugepages")
MEMORY = Path("/proc/meminfo")
CONTRACT = """
max_connections = 100
shared_buffers = 256MB
effective_cache_size = 1GB
work_mem = 16MB
random_page_cost = 1.1
effective_io_concurrency = 200
"""
STAGES = ("TPC-B", "read-only", "search, ef 40", "search, ef 100", "mixed agent load")
UNTIMED = {"search, ef 200"}


@dataclass(frozen=True)
class Configuration:
    """A drop-in, and the number of 2 MiB pages to reserve for it."""

    conf: str
    pages: int = 0


@contextmanager
def reserved(pages: int) -> Iterator[int]:
    """Reserve huge pages beside those in use, if permitted; yield their number, then restore the old one."""
    old = int(PAGES.read_text())
    if pages == 0 or not os.access(PAGES, os.W_OK):
        yield 0
        return
    named = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    total, free, promised = (int(named[f"HugePages_{name}"]) for name in ("Total", "Free", "Rsvd"))
    used = total - free + promised
    try:
        PAGES.write_text(str(used + pages))
        yield int(PAGES.read_text()) - used
    finally:
        PAGES.write_text(str(old))


def configurations(major: int, pgvector: str, vectors: int) -> dict[str, Configuration]:
    """Return the configurations to compare; ours is computed for this machine, like the role does."""
    host = {**detect(), "container": False}
    ours = {}
    for name, accepted in (("prod", [PARALLEL_BUILD]), ("prod, serial builds", [])):
        tuning = tune(
            Host(**host), "prod", postgresql_major=major, pgvector_version=pgvector, vectors=vectors, accepted=accepted
        )  # type: ignore[arg-type]
        pages = int(tuning["huge_pages"].reason.split(" pages")[0].split()[-1])
        ours[name] = Configuration(tuning.as_conf(), pages)
    reference = (HERE / "reference-prod.conf").read_text()
    counted = "shared_preload_libraries = 'pg_stat_statements'\n"
    return {
        "stock": Configuration(""),
        "contract": Configuration(CONTRACT),
        "reference": Configuration(reference + counted, int(reference.split("nr_hugepages=")[1].split()[0])),
        **ours,
    }


class Bench:
    """One cluster with one data set, started with each configuration in turn."""

    def __init__(self, sizes: Sizes) -> None:
        """Create the empty cluster."""
        root = Path(tempfile.mkdtemp(prefix="provision-bench-", dir="/var/tmp"))
        if os.geteuid() == 0:
            shutil.chown(root, "postgres", "postgres")
        self.sizes = sizes
        self.cluster = Cluster(install(root), root, free_port())
        self.cluster.initialise({"listen_addresses": "127.0.0.1"})
        self.drop_in = self.cluster.data / "bench.conf"
        with (self.cluster.data / "postgresql.conf").open("a") as conf:
            conf.write("include_if_exists = 'bench.conf'\n")
        self.builds: list[str] = []

    @contextmanager
    def served(self, configuration: Configuration) -> Iterator[database.Connection]:
        """Start the server with a configuration and its huge pages, then stop it."""
        with reserved(configuration.pages) as pages:
            if pages < configuration.pages:
                print(f"only {pages} of {configuration.pages} huge pages could be reserved")
            taken = "huge_pages = on" if configuration.pages and pages >= configuration.pages else ""
            self.drop_in.write_text(configuration.conf + f"\nport = {self.cluster.port}\n{taken}\n")
            self.cluster.start()
            try:
                with database.connect(self.cluster.url(), application="benchmarks.database") as connection:
                    connection.execute(f"SET search_path = {place.SCHEMA}, public".encode())
                    yield connection
            finally:
                self.cluster.stop()

    def load(self, configuration: Configuration) -> None:
        """Apply the migrations and fill the benchmark's schema."""
        with self.served(configuration) as connection:
            self.cluster.psql('CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"')
            for path in sorted((HERE.parent / "migrations").glob("*.up.sql")):
                self.cluster.psql(path.read_text())
            connection.execute(f"CREATE SCHEMA {place.SCHEMA}".encode())
            place.copy_tables(connection, "public")
            self.builds = place.fill(connection, self.sizes.vectors, self.sizes.seed, lambda _: None)
            self.pgbench.initialise(self.sizes.scale)
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm SCHEMA public")

    @property
    def pgbench(self) -> Pgbench:
        """Return pgbench for the server."""
        environment = database.environment(self.cluster.url())
        return Pgbench(environment, f"{place.SCHEMA},public", self.sizes.seed)

    def built(self, configuration: Configuration) -> tuple[float, float]:
        """Rebuild the index under a configuration; return seconds, and recall at ef_search 40."""
        with self.served(configuration) as connection:
            connection.execute("DROP INDEX IF EXISTS memories_embedding_idx")
            taken = build(connection, self.builds)
            return taken, recall(connection, 40)

    def round(self, configuration: Configuration) -> dict[str, tuple[float, float]]:
        """Measure transactions per second and p95 of every stage."""
        found = {}
        with self.served(configuration) as connection:
            connection.execute(
                "SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i')"
                f" AND relnamespace = '{place.SCHEMA}'::regnamespace".encode()
            )
            for name, run in stages(self.sizes).items():
                if name not in UNTIMED:
                    rate = run(self.pgbench)
                    found[name] = (rate.tps, rate.p95)
        return found


def main() -> None:
    """Load, build and measure in rotating order; print ratios to stock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=40_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--builds", type=int, default=3, help="Index builds of each configuration.")
    parser.add_argument("--scale", type=int, default=20)
    parser.add_argument("--only", nargs="*", help="Configurations to compare with stock.")
    parser.add_argument("--set", nargs="*", default=[], help="Additional settings for our profile, to try them.")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that pages, server and files are cleaned up
    sizes = Sizes(scale=options.scale, vectors=options.vectors, seconds=options.seconds)
    bench = Bench(sizes)
    try:
        major = int((bench.cluster.data / "PG_VERSION").read_text())
        bench.load(Configuration("maintenance_work_mem = 1GB\nmax_wal_size = 8GB"))
        with bench.served(Configuration("")):
            version = bench.cluster.psql("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        chosen = configurations(major, version, options.vectors)
        if options.set:
            extra = "\n".join(options.set)
            chosen["prod + " + ", ".join(options.set)] = Configuration(
                chosen["prod"].conf + extra, chosen["prod"].pages
            )
        if options.only:
            chosen = {name: chosen[name] for name in chosen if name == "stock" or name in options.only or "+" in name}
        print(f"PostgreSQL {major}, pgvector {version}, {options.vectors:,} vectors", flush=True)
        builds: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for number in range(options.builds):
            for name in turn(list(chosen), number):
                builds[name].append(bench.built(chosen[name]))
        stock = statistics.median(seconds for seconds, _ in builds["stock"])
        for name, taken in builds.items():
            seconds, found = (statistics.median(one[i] for one in taken) for i in (0, 1))
            ratio = seconds / stock
            print(f"build {name:40} {seconds:7.1f} s  ratio {ratio:5.2f}  recall at ef 40 {found:.3f}", flush=True)
        rounds: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in chosen}
        names = [name for name in chosen if name != "prod, serial builds"]
        for number in range(options.rounds):
            for name in turn(names, number):
                rounds[name].append(bench.round(chosen[name]))
        report(rounds, names)
    finally:
        bench.cluster.remove()


def turn(names: list[str], number: int) -> list[str]:
    """Rotate the order, so that no configuration always runs first."""
    return names[number % len(names) :] + names[: number % len(names)]


def report(rounds: dict[str, list[dict[str, tuple[float, float]]]], names: list[str]) -> None:
    """Print medians as ratios to stock."""
    middle = {
        name: {stage: [statistics.median(one[stage][i] for one in rounds[name]) for i in (0, 1)] for stage in STAGES}
        for name in names
    }
    print(f"{'':32}" + "".join(f"{stage:>18}" for stage in STAGES) + f"{'mixed p95':>12}")
    for name in names:
        ratios = [middle[name][stage][0] / middle["stock"][stage][0] for stage in STAGES]
        p95 = middle[name]["mixed agent load"][1] / middle["stock"]["mixed agent load"][1]
        print(f"{name:32}" + "".join(f"{value:18.2f}" for value in ratios) + f"{p95:12.2f}")
    absolute = "".join(f"{middle['stock'][stage][0]:18,.0f}" for stage in STAGES)
    print(f"{'(stock, per second)':32}{absolute}")


if __name__ == "__main__":
    main()
