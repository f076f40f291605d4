"""Search among the memories of one agent: the plan that the server chooses, its recall and its rate. Does IO.

    python -m benchmarks.filtered [--agents N ...] [--ef N ...] [--vectors N] [--seconds S]

The settings are those of the application's role: `hnsw.ef_search`, and `hnsw.iterative_scan` where pgvector has it.
Called as a program, it compares values of `ef_search`, and the exact search of docs/schema.md, for several numbers of
agents, on a cluster of its own with the prod settings of this machine. Asserts nothing.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.database import configurations
from benchmarks.harness import benched
from provision import database
from provision.controller.bench import place
from provision.controller.bench.pgbench import Pgbench, Rate
from provision.controller.bench.processes import cpu_seconds
from provision.controller.bench.results import markdown_table
from provision.controller.bench.run import Sizes, build
from provision.controller.bench.settings import OURS
from provision.tuning import vector

QUERIES, NEIGHBOURS = 30, 10


@dataclass(frozen=True)
class Search:
    """A way to search: the session's settings, and whether the search is exact."""

    settings: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False

    def sql(self, agent: str, query: str) -> str:
        """Return the statement for the number of an agent and of a query, or for their parameters."""
        zero = " + 0" if self.exact else ""  # no vector index answers such an expression
        return (
            f"SELECT id FROM memories WHERE agent_id = md5('agent' || {agent})::uuid ORDER BY"
            f" (embedding <=> (SELECT embedding FROM queries WHERE id = {query})){zero} LIMIT {NEIGHBOURS}"
        )


EXACT = Search(exact=True)


def share(connection: database.Connection, agents: int) -> None:
    """Give every memory to one of so many agents, evenly; the caller builds the vector index afterwards."""
    connection.execute(
        "INSERT INTO agents (id, name) SELECT md5('agent' || i)::uuid, 'agent ' || i"
        f" FROM generate_series(1, {agents}) i ON CONFLICT DO NOTHING".encode()
    )
    connection.execute("DROP INDEX IF EXISTS memories_embedding_idx")
    connection.execute(
        "UPDATE memories m SET agent_id = md5('agent' || 1 + o.number %% %s)::uuid FROM"
        " (SELECT id, row_number() OVER (ORDER BY id) AS number FROM memories) o WHERE o.id = m.id",
        (agents,),
    )
    connection.execute("VACUUM FULL ANALYZE memories")


def usual(pgvector: str) -> Search:
    """Return the search of the application's role, with its settings."""
    return Search({setting.name: setting.text for setting in vector.role_settings(pgvector)})


def plan(connection: database.Connection, search: Search) -> str:
    """Return how the server searches: its scan of memories."""
    rows = _rows(connection, f"EXPLAIN {search.sql('1', '1')}", search)
    scans = [str(row[0]).strip(" ->") for row in rows if "Scan" in str(row[0]) and "queries" not in str(row[0])]
    return re.sub(r" +\(cost.*", "", scans[-1]) if scans else ""


def recall(connection: database.Connection, agents: int, search: Search) -> float:
    """Return recall at 10 against exact searches; an agent with fewer memories has fewer neighbours."""
    hits = whole = 0
    for number in range(1, QUERIES + 1):
        numbers = str(1 + number % agents), str(number)
        exact, found = (set(_rows(connection, each.sql(*numbers), each)) for each in (EXACT, search))
        hits += len(exact & found)
        whole += len(exact)
    return hits / whole


def rate(pgbench: Pgbench, seconds: float, agents: int, search: Search) -> Rate:
    """Return the rate of searches of random agents, by eight clients."""
    script = f"\\set q random(1, {place.QUERIES})\n\\set a random(1, {agents})\n{search.sql(':a', ':q')};\n"
    return pgbench.measure(seconds, 8, scripts={script: 1}, **search.settings)


def _rows(connection: database.Connection, statement: str, search: Search) -> list[tuple[object, ...]]:
    with connection.transaction(force_rollback=True):
        for name, value in search.settings.items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        return connection.execute(statement.encode()).fetchall()


def main() -> None:
    """Compare values of ef_search for several numbers of agents, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 10, 33, 50])
    parser.add_argument("--ef", nargs="+", default=["100", "200", "400", "1000"])
    parser.add_argument("--vectors", type=int, default=40_000)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    lines = []
    with benched(Sizes(scale=1, vectors=options.vectors, seconds=options.seconds)) as bench:
        bench.load(easy=200)
        print(f"PostgreSQL {bench.server}, pgvector {bench.pgvector}, {options.vectors:,} vectors", flush=True)
        given = usual(bench.pgvector).settings
        searches = {f"ef_search {ef}": Search({**given, "hnsw.ef_search": ef}) for ef in options.ef} | {"exact": EXACT}
        with bench.served(configurations(bench.major, bench.pgvector, options.vectors)[OURS]) as connection:
            for agents in options.agents:
                share(connection, agents)
                build(connection, bench.builds)
                for name, search in searches.items():
                    cpu = cpu_seconds(bench.postmaster)
                    found = rate(bench.pgbench, options.seconds, agents, search)
                    cpu = 1e3 * (cpu_seconds(bench.postmaster) - cpu) / found.transactions
                    near, scan = recall(connection, agents, search), plan(connection, search)
                    lines.append([str(agents), name, f"{near:.2f}", f"{cpu:,.3g}", f"{found.p95:,.3g}", scan])
                    print(*lines[-1], flush=True)
    print(markdown_table(("agents", "search", "recall", "CPU, ms", "p95, ms", "scan"), lines))


if __name__ == "__main__":
    main()
