"""Run the whole benchmark and return its results.

Does IO on the database, and starts pgbench. An interrupted run (Ctrl-C, SIGTERM) drops its schema.
"""

from __future__ import annotations

import re
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from provision import database, system
from provision.checks.vector_index import Lost, lost
from provision.controller.bench import place
from provision.controller.bench.intervals import Ratio
from provision.controller.bench.pgbench import MIXED, SEARCH, Pgbench, Rate
from provision.tuning import detect as machine

EF_SEARCH = (40, 100, 200)
NEIGHBOURS = 10
RECALL_QUERIES = 50
Progress = Callable[[str, int, int], None]
"""Called with a stage, the number of completed steps and their total."""


@dataclass(frozen=True)
class Sizes:
    """Size of the benchmark: pgbench's scale, number of vectors, seconds per stage, clients, rounds of the stages."""

    scale: int = 10
    vectors: int = 20_000
    seconds: float = 10
    clients: int = 8
    seed: int = 42
    rounds: int = 1


@dataclass
class Measured:
    """Results: rates by stage (medians over `rounds`), recall by ef_search, and queries that do not use the index.

    `when` is in UTC; `client` describes the machine that ran the clients, which need not be the server's. `compared`
    has the ratios `rate` and `p95` of each stage to an earlier report, if one was given.
    """

    when: str
    client: str
    database: str
    server: str
    pgvector: str
    settings: dict[str, str]
    sizes: Sizes
    rates: dict[str, Rate] = field(default_factory=dict)
    rounds: list[dict[str, Rate]] = field(default_factory=list)
    build_s: float = 0.0
    recall: dict[int, float] = field(default_factory=dict)
    lost: tuple[Lost, ...] = ()
    compared: dict[str, dict[str, Ratio]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def bench(url: str, sizes: Sizes, *, confirmed: bool = False, progress: Progress = lambda *_: None) -> Measured:
    """Benchmark a database. Raises UsageError if that is refused, HostError and DatabaseError on failures."""
    with place.connected(url) as connection:
        real = place.refuse(connection, confirmed=confirmed)
        measured = _about(connection, sizes)
        with interruptible(), place.made(connection, real, url):
            pgbench = Pgbench(database.environment(url), f"{place.SCHEMA},{real},public", sizes.seed)
            _measure(connection, pgbench, measured, progress)
    return measured


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt, so that what was made is removed."""
    # SIGTERM too, because a shell starts background jobs with SIGINT ignored; SIGHUP, which nohup ignores, where a
    # connection to the host is lost.
    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, _interrupted) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _about(connection: database.Connection, sizes: Sizes) -> Measured:
    row = connection.execute(
        "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
    ).fetchone()
    changed = connection.execute(
        "SELECT name, current_setting(name) FROM pg_settings"
        " WHERE source NOT IN ('default', 'client', 'session', 'override') AND name !~ 'password|command|conninfo'"
        " ORDER BY name"
    ).fetchall()
    assert row is not None  # noqa: S101 - a SELECT without FROM returns one row
    settings = {str(name): str(value) for name, value in changed}
    about = (system.stamp(), machine_text(), database.describe_connection(connection))
    return Measured(*about, str(row[0]), str(row[1]), settings, sizes)


def machine_text() -> str:
    """Describe this machine: name, processor, CPUs, memory, as far as its cgroup allows."""
    facts = machine.detect()
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    model = re.search(r"^model name\s*: (.+)$", text, re.M)
    processor = f"{model[1].strip()}, " if model else ""
    return f"{socket.gethostname()}: {processor}{facts['cpus']} CPUs, {facts['memory_mb']} MB"


def _measure(connection: database.Connection, pgbench: Pgbench, found: Measured, progress: Progress) -> None:
    sizes = found.sizes
    progress("fill pgbench's tables", 0, 1)
    pgbench.initialise(sizes.scale)
    progress("fill pgbench's tables", 1, 1)
    builds = place.fill(
        connection, sizes.vectors, sizes.seed, lambda done: progress("load vectors", done, sizes.vectors)
    )
    progress("build the HNSW index", 0, 1)
    found.build_s = build(connection, builds)
    progress("build the HNSW index", 1, 1)
    for number, ef_search in enumerate(EF_SEARCH, 1):
        found.recall[ef_search] = recall(connection, ef_search)
        progress("recall against exact search", number, len(EF_SEARCH))
    found.lost = lost(connection, "memories", "embedding", NEIGHBOURS)
    work = stages(sizes)
    whole = len(work) * sizes.rounds
    for number in range(sizes.rounds):
        found.rounds.append({})
        for name, run in work.items():
            found.rounds[-1][name] = run(pgbench)
            progress(name, len(work) * number + len(found.rounds[-1]), whole)
    found.rates = {name: middle([each[name] for each in found.rounds]) for name in work}


def middle(rates: list[Rate]) -> Rate:
    """Return the medians of several rates."""
    tps, p50, p95, p99 = (
        statistics.median(getattr(rate, part) for rate in rates) for part in ("tps", "p50", "p95", "p99")
    )
    return Rate(tps, p50, p95, p99, sum(rate.transactions for rate in rates))


def build(connection: database.Connection, statements: list[str]) -> float:
    """Build the vector index and return the seconds taken."""
    started = time.monotonic()
    for statement in statements:
        connection.execute(statement.encode())
    return time.monotonic() - started


def recall(connection: database.Connection, ef_search: int, table: str = "memories", queries: str = "queries") -> float:
    """Return recall at 10 of index searches against exact searches, over the first fifty queries."""
    query = (
        f"SELECT m.id FROM {table} m ORDER BY m.embedding <=>"
        f" (SELECT embedding FROM {queries} WHERE id = %s) LIMIT {NEIGHBOURS}"
    )
    hits = 0
    for number in range(1, RECALL_QUERIES + 1):
        answers = []
        for settings in ({"enable_indexscan": "off"}, {"enable_seqscan": "off", "hnsw.ef_search": str(ef_search)}):
            with connection.transaction():
                for name, value in settings.items():
                    connection.execute("SELECT set_config(%s, %s, true)", (name, value))
                answers.append(set(connection.execute(query.encode(), (number,)).fetchall()))
        hits += len(answers[0] & answers[1])
    return hits / (RECALL_QUERIES * NEIGHBOURS)


def stages(sizes: Sizes) -> dict[str, Callable[[Pgbench], Rate]]:
    """Return the pgbench stages in order."""
    numbers = {"queries": place.QUERIES, "sessions": place.SESSIONS, "agents": place.AGENTS}
    mixed = {text.format(**numbers): weight for text, weight in MIXED.items()}
    search = {SEARCH.format(**numbers): 1}

    def run(*words: str, scripts: dict[str, int] | None = None, **settings: object) -> Callable[[Pgbench], Rate]:
        return lambda pgbench: pgbench.measure(sizes.seconds, sizes.clients, *words, scripts=scripts, **settings)

    return {
        "TPC-B": run("--builtin=tpcb-like", "--protocol=prepared"),
        "read-only": run("--builtin=select-only", "--protocol=prepared"),
        **{f"search, ef {ef}": run(scripts=search, **{"hnsw.ef_search": ef}) for ef in EF_SEARCH},
        "mixed agent load": run(scripts=mixed),
    }
