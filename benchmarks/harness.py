"""One cluster with both data sets, started with each configuration in turn, and what a stage costs it.

Does IO: runs a server on this machine. Reserves the huge pages of a configuration while its server runs, and restores
the old number. The server must then use them (huge_pages = on): otherwise it would silently run without them if another
process took some. fsync is on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.processes import cpu_seconds
from benchmarks.results import Build, Sample
from provision import database
from provision.controller.bench import place
from provision.controller.bench.pgbench import Pgbench, Rate
from provision.controller.bench.run import Sizes, build, recall, stages
from provision.host.server import kernel
from tests.clusters import Cluster, free_port, install

HERE = Path(__file__).parent
PAGES = Path("/proc/sys/vm/nr_hugepages")
MEMORY = Path("/proc/meminfo")
DIMENSIONS = 1536
EASY_SEARCH = f"""\\set q random(1, {place.QUERIES})
SELECT id FROM notes ORDER BY embedding <=> (SELECT embedding FROM note_queries WHERE id = :q) LIMIT 10;
"""
LOADING = "maintenance_work_mem = 3GB\nmax_wal_size = 8GB\nmax_parallel_maintenance_workers = 0\n"
"""A build of 280,000 vectors takes 2 GB: from disk it would take many times as long."""
SEARCHES = {
    "hard, ef 40": (40, "memories", "queries"),
    "hard, ef 100": (100, "memories", "queries"),
    "easy, ef 40": (40, "notes", "note_queries"),
}
"""Searches whose recall a build is judged by: ef_search, table and table of queries."""


@dataclass(frozen=True)
class Configuration:
    """A drop-in, and the number of 2 MiB pages to reserve for it."""

    conf: str
    pages: int = 0

    def changed(self, assignment: str) -> Configuration:
        """Return the configuration with one more setting, such as `jit = on`."""
        name = assignment.partition("=")[0].strip()
        return replace(self, conf=f"{self.conf}\n{assignment}", pages=0 if name == "huge_pages" else self.pages)


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
        if int(PAGES.read_text()) < used + pages:
            kernel.compact()
            PAGES.write_text(str(used + pages))
        yield int(PAGES.read_text()) - used
    finally:
        PAGES.write_text(str(old))


def forget(data: Path) -> None:
    """Drop the files of a stopped server from the kernel's cache (posix_fadvise(2)); other files stay cached."""
    for path in data.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def placed(programs: Path | None = None) -> Cluster:
    """Return a cluster without data in a directory of its own; `programs` is the `bin` directory of another cluster."""
    root = Path(tempfile.mkdtemp(prefix="provision-bench-", dir="/var/tmp"))
    if os.geteuid() == 0:
        shutil.chown(root, "postgres", "postgres")
    return Cluster(programs or install(root), root, free_port())


class Bench:
    """The cluster."""

    def __init__(self, sizes: Sizes) -> None:
        """Create the empty cluster."""
        self.sizes = sizes
        self.cluster = placed()
        self.cluster.initialise({"listen_addresses": "127.0.0.1"})
        self.drop_in = self.cluster.data / "bench.conf"
        with (self.cluster.data / "postgresql.conf").open("a") as conf:
            conf.write("include_if_exists = 'bench.conf'\n")
        self.builds: list[str] = []
        self.easy: list[str] = []
        self.server = self.pgvector = ""
        self.remarks: list[str] = []

    @property
    def major(self) -> int:
        """Return the server's major."""
        return int((self.cluster.data / "PG_VERSION").read_text())

    @contextmanager
    def pages(self, configuration: Configuration) -> Iterator[str]:
        """Reserve the huge pages of a configuration; yield the line that makes a server use them, if all were."""
        with reserved(configuration.pages) as pages:
            if pages < configuration.pages:
                self._remark(f"only {pages} of {configuration.pages} huge pages could be reserved")
            yield "huge_pages = on" if configuration.pages and pages >= configuration.pages else ""

    @contextmanager
    def served(self, configuration: Configuration) -> Iterator[database.Connection]:
        """Start the server with a configuration and its huge pages, then stop it."""
        with self.pages(configuration) as taken:
            self.drop_in.write_text(configuration.conf + f"\nport = {self.cluster.port}\n{taken}\n")
            self.cluster.start()
            try:
                with database.connect(self.cluster.url(), application="benchmarks.database") as connection:
                    connection.execute(f"SET search_path = {place.SCHEMA}, public".encode())
                    yield connection
            finally:
                self.cluster.stop()

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            print(text, flush=True)
            self.remarks.append(text)

    def load(self, *, hard: int = 0, easy: int = 0, index: bool = True) -> None:
        """Apply the migrations and fill both data sets, of `sizes.vectors` unless given; build their indexes."""
        with self.served(Configuration(LOADING)) as connection:
            self.cluster.psql('CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"')
            for path in sorted((HERE.parent / "migrations").glob("*.up.sql")):
                self.cluster.psql(path.read_text())
            connection.execute(f"CREATE SCHEMA {place.SCHEMA}".encode())
            place.copy_tables(connection, "public")
            self.builds = place.fill(connection, hard or self.sizes.vectors, self.sizes.seed, lambda _: None)
            self.easy = place.fill_easy(connection, easy or self.sizes.vectors, DIMENSIONS, self.sizes.seed)
            build(connection, [*self.builds, *self.easy] if index else [])
            self.pgbench.initialise(self.sizes.scale)
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm SCHEMA public")
            row = connection.execute(
                "SELECT current_setting('server_version'), extversion FROM pg_extension WHERE extname = 'vector'"
            ).fetchone()
            self.server, self.pgvector = (str(value) for value in row or ("", ""))

    @property
    def pgbench(self) -> Pgbench:
        """Return pgbench for the server."""
        return self.pgbench_of(self.cluster)

    def pgbench_of(self, cluster: Cluster) -> Pgbench:
        """Return pgbench for the cluster, or for a copy of it."""
        return Pgbench(database.environment(cluster.url()), f"{place.SCHEMA},public", self.sizes.seed)

    @property
    def postmaster(self) -> int:
        """Return the pid of the running server."""
        return int((self.cluster.data / "postmaster.pid").read_text().split()[0])

    def built(self, configuration: Configuration) -> Build:
        """Rebuild the index of the hard data set under a configuration."""
        with self.served(configuration) as connection:
            connection.execute("DROP INDEX IF EXISTS memories_embedding_idx")
            cpu, wal = cpu_seconds(self.postmaster), written(connection)
            seconds = build(connection, self.builds)
            cpu, wal = cpu_seconds(self.postmaster) - cpu, written(connection) - wal
            found = {name: recall(connection, *search) for name, search in SEARCHES.items()}
            return Build(seconds, cpu, wal / 2**20, found)

    def round(self, configuration: Configuration, only: tuple[str, ...] = ()) -> dict[str, Sample]:
        """Measure every stage, or `only` these, with every table cached and vacuumed."""
        with self.served(configuration) as connection:
            for table in ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "activities"):
                connection.execute(f"VACUUM ANALYZE {table}".encode())
            connection.execute(
                "SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i')"
                f" AND relnamespace = '{place.SCHEMA}'::regnamespace".encode()
            )
            connection.execute("CHECKPOINT")
            return {
                name: self._sample(connection, run) for name, run in self.stages().items() if not only or name in only
            }

    def stages(self) -> dict[str, Callable[[Pgbench], Rate]]:
        """Return the stages of `provision bench` that are compared, and the search on the easy data set."""
        known = stages(self.sizes)
        size = (self.sizes.seconds, self.sizes.clients)
        return {
            "TPC-B": known["TPC-B"],
            "read-only": known["read-only"],
            "hard search, ef 40": known["search, ef 40"],
            "hard search, ef 100": known["search, ef 100"],
            "easy search, ef 40": lambda pgbench: pgbench.measure(
                *size, scripts={EASY_SEARCH: 1}, **{"hnsw.ef_search": 40}
            ),
            "mixed": known["mixed agent load"],
        }

    def _sample(self, connection: database.Connection, run: Callable[[Pgbench], Rate]) -> Sample:
        cpu, wal = cpu_seconds(self.postmaster), written(connection)
        rate = run(self.pgbench)
        cpu, wal = cpu_seconds(self.postmaster) - cpu, written(connection) - wal
        return Sample(rate.tps, rate.p95, 1e6 * cpu / rate.transactions, wal / rate.transactions)


def written(connection: database.Connection) -> int:
    """Return the bytes of WAL that the server has written so far."""
    row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()
    return int(str(row[0])) if row else 0
