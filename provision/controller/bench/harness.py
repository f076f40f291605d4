"""One cluster with both data sets, started with each configuration in turn, and what a stage costs it.

Does IO: runs a server on this machine. Reserves the huge pages of a configuration while its server runs, and restores
the old number. The server must then use them (huge_pages = on): otherwise it would silently run without them if another
process took some. fsync is on.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from provision import database, secure_path, system
from provision.controller import inputs
from provision.controller.bench import place
from provision.controller.bench.pgbench import Pgbench, Rate
from provision.controller.bench.processes import cpu_seconds
from provision.controller.bench.results import Build, Results, Sample
from provision.controller.bench.run import Sizes, build, machine_text, recall, stages
from provision.host.server import kernel

PAGES = Path("/proc/sys/vm/nr_hugepages")
MEMORY = Path("/proc/meminfo")
DIMENSIONS = 1536
EASY_SEARCH = f"""\\set q random(1, {place.QUERIES})
SELECT id FROM notes ORDER BY embedding <=> (SELECT embedding FROM note_queries WHERE id = :q) LIMIT 10;
"""
LOADING = "maintenance_work_mem = 3GB\nmax_wal_size = 8GB\nmax_parallel_maintenance_workers = 0\n"
"""A build of 280,000 vectors takes 2 GB: it should not continue from disk."""
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
        pages = 0 if _name(assignment) == "huge_pages" else self.pages
        return replace(self, conf=f"{self.conf}\n{assignment}", pages=pages)

    def without(self, name: str) -> Configuration:
        """Return the configuration with one setting left at PostgreSQL's default; without huge_pages, none are used."""
        lines = [line for line in self.conf.splitlines() if _name(line) != name]
        return replace(self, conf="\n".join(lines), pages=0 if name == "huge_pages" else self.pages)


def _name(line: str) -> str:
    return line.partition("=")[0].strip()


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
    wanted = max(old, used + pages)  # pages that are given back may not be had again
    try:
        PAGES.write_text(str(wanted))
        if int(PAGES.read_text()) < wanted:
            kernel.compact()
            PAGES.write_text(str(wanted))
        yield int(PAGES.read_text()) - used
    finally:
        PAGES.write_text(str(old))


class Cluster(Protocol):
    """A cluster whose server can be started and stopped; its postgresql.conf is the one of initdb."""

    @property
    def data(self) -> Path:
        """The data directory."""
        ...

    @property
    def port(self) -> int:
        """The port, also of the socket."""
        ...

    def url(self) -> str:
        """Return the superuser's URL or key=value string of database postgres."""
        ...

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        ...

    def stop(self) -> None:
        """Stop the server."""
        ...


Made = TypeVar("Made", bound=Cluster)


class Bench(Generic[Made]):
    """A cluster with both data sets."""

    def __init__(self, sizes: Sizes, cluster: Made, tell: Callable[[str], None] = lambda _: None) -> None:
        """Take a cluster without data, whose server is stopped; `tell` is called with each remark."""
        self.sizes, self.cluster, self.tell = sizes, cluster, tell
        self.drop_in = cluster.data / "bench.conf"
        with system.as_user(), (cluster.data / "postgresql.conf").open("a") as conf:
            conf.write("include_if_exists = 'bench.conf'\n")
        self.builds: list[str] = []
        self.easy: list[str] = []
        self.server = self.pgvector = ""
        self.remarks: list[str] = []

    @property
    def major(self) -> int:
        """Return the server's major."""
        return int(secure_path.text(self.cluster.data / "PG_VERSION"))

    @contextmanager
    def pages(self, configuration: Configuration) -> Iterator[str]:
        """Reserve the huge pages of a configuration; yield the line that makes a server use them, or none."""
        with reserved(configuration.pages) as pages:
            if pages < configuration.pages:
                self._remark(f"only {pages} of {configuration.pages} huge pages could be reserved")
            if configuration.pages:
                yield "huge_pages = on" if pages >= configuration.pages else ""
            else:
                yield "huge_pages = off"  # it would take pages that happen to be free

    def configure(self, configuration: Configuration, *lines: str) -> None:
        """Write the drop-in."""
        with system.as_user():
            self.drop_in.write_text("\n".join([configuration.conf, f"port = {self.cluster.port}", *lines, ""]))

    @contextmanager
    def served(self, configuration: Configuration) -> Iterator[database.Connection]:
        """Start the server with a configuration and its huge pages, then stop it."""
        with self.pages(configuration) as taken:
            self.configure(configuration, taken)
            self.cluster.start()
            try:
                with database.connect_pinned(self.cluster.url(), application="provision bench") as connection:
                    connection.execute(f"SET search_path = {place.SCHEMA}, public".encode())
                    yield connection
            finally:
                self.cluster.stop()

    def differing(self, configuration: Configuration) -> list[str]:
        """Return the settings of a configuration that differ from PostgreSQL's defaults."""
        with self.served(configuration) as connection:
            rows = database.ask(
                connection, "SELECT name FROM pg_settings WHERE setting IS DISTINCT FROM boot_val ORDER BY name"
            )
        given = set(map(_name, configuration.conf.splitlines()))
        return [str(name) for (name,) in rows if name in given]

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.tell(text)
            self.remarks.append(text)

    def load(self, *, hard: int = 0, easy: int = 0, index: bool = True) -> None:
        """Apply the migrations and fill both data sets, of `sizes.vectors` unless given; build their indexes."""
        with self.served(Configuration(LOADING)) as connection:
            connection.execute("SET search_path = public")
            connection.execute('CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"')
            for path in sorted((inputs.ROOT / "migrations").glob("*.up.sql")):
                connection.execute(path.read_bytes())
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
        return int(secure_path.text(self.cluster.data / "postmaster.pid").split()[0])

    def built(self, configuration: Configuration) -> Build:
        """Rebuild the index of the hard data set under a configuration."""
        with self.served(configuration) as connection:
            connection.execute("DROP INDEX IF EXISTS memories_embedding_idx")
            cpu, wal = cpu_seconds(self.postmaster), written(connection)
            seconds = build(connection, self.builds)
            cpu, wal = cpu_seconds(self.postmaster) - cpu, written(connection) - wal
            found = {name: recall(connection, *search) for name, search in SEARCHES.items()}
            return Build(seconds, cpu, wal / 2**20, found)

    def compare(
        self, rows: Mapping[str, Configuration], found: Results, *, rounds: int, builds: int,
        only: tuple[str, ...] = (), built_only: tuple[str, ...] = (), keep: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Measure every row in each round, in another order each time; `keep` is called after each step.

        `built_only` names rows that only builds tell apart.
        """
        timed = [name for name in rows if name not in built_only]
        found.builds, found.rounds = {name: [] for name in rows}, {name: [] for name in timed}
        found.remarks = self.remarks
        for number in range(max(rounds, builds)):
            for name in turn(list(rows), number) if number < builds else ():
                found.builds[name].append(self.built(rows[name]))
                keep(f"build {number + 1} of {name}: {found.builds[name][-1].seconds:.1f} s")
            for name in turn(timed, number) if number < rounds else ():
                found.rounds[name].append(self.round(rows[name], only))
                keep(f"round {number + 1} of {name}")

    def results(self, rows: Mapping[str, Configuration]) -> Results:
        """Return results without measurements: of this server, machine and load."""
        sizes = self.sizes
        load = {"vectors": sizes.vectors, "scale": sizes.scale, "seconds": sizes.seconds, "clients": sizes.clients}
        confs = {name: row.conf for name, row in rows.items()}
        return Results(system.stamp(), machine_text(), self.server, self.pgvector, load, confs)

    def round(self, configuration: Configuration, only: tuple[str, ...] = ()) -> dict[str, Sample]:
        """Measure every stage, or `only` these, with every table cached and vacuumed."""
        with self.served(configuration) as connection:
            for table in ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "activities"):
                connection.execute(f"VACUUM ANALYZE {table}".encode())
            connection.execute(
                "SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i')"
                " AND relnamespace = %s::regnamespace",
                (place.SCHEMA,),
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


def turn(names: list[str], number: int) -> list[str]:
    """Return the names in the random order of a round, which is the same in every run.

    A rotated order would keep the neighbours of a row, and give a row always the same place among many: the tables grow
    with each row that is measured.
    """
    return random.Random(number).sample(names, len(names))  # noqa: S311 - an order, not a secret


def written(connection: database.Connection) -> int:
    """Return the bytes of WAL that the server has written so far."""
    row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')").fetchone()
    return int(str(row[0])) if row else 0
