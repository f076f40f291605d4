"""Measure searches in the first seconds after a restart and after a failover, with and without autoprewarm.

    python -m benchmarks.restart [--vectors N] [--seconds S] [--rounds R]

Does IO: one cluster, whose index and rows are cached by searches, and a new standby from a base backup for each
failover. A restart stops and starts the server. A failover kills the server and promotes the standby, which has
answered no queries; with autoprewarm, the standby has finished loading the list from the base backup. The files stay in
the kernel's cache, or are dropped from it as after a reboot. Both servers have the prod settings of a host with half of
this machine's memory. Asserts nothing.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.database import configurations
from benchmarks.harness import benched, forget, placed
from provision import database
from provision.controller.bench.harness import Bench, Configuration
from provision.controller.bench.intervals import ratio
from provision.controller.bench.pgbench import Pgbench, Rate
from provision.controller.bench.run import Sizes
from provision.controller.bench.settings import OURS
from provision.errors import HostError
from tests.clusters import Cluster, as_server_user, run

WARM_S = 15
PARTS = ("tps", "p50", "p95", "p99")
LIBRARIES = "shared_preload_libraries = 'pg_stat_statements,auto_explain{}'"
PREWARM = ",pg_prewarm"
QUERIES = 2_000
"""Different queries: so many read most of the index, and few enough rows of the table that both fit in the cache."""
SEARCH = f"""\\set q random(1, {QUERIES})
SELECT id FROM notes ORDER BY embedding <=> (SELECT embedding FROM notes WHERE id = :q) LIMIT 10;
"""


def search(bench: Bench[Cluster], pgbench: Pgbench, seconds: float) -> Rate:
    """Search for the neighbours of rows."""
    return pgbench.measure(seconds, bench.sizes.clients, scripts={SEARCH: 1}, **{"hnsw.ef_search": 40})


def warm(bench: Bench[Cluster], connection: database.Connection) -> None:
    """Cache the index and the rows that searches return, and let autoprewarm, if it runs, write its list."""
    connection.execute("SELECT pg_prewarm('notes_embedding_idx')")
    search(bench, bench.pgbench, WARM_S)
    row = connection.execute("SHOW shared_preload_libraries").fetchone() or ("",)
    if PREWARM in str(row[0]):
        connection.execute("SELECT public.autoprewarm_dump_now()")


def restarted(bench: Bench[Cluster], configuration: Configuration, seconds: float, *, lost: bool) -> Rate:
    """Restart the warm server, and return what clients see in the first seconds."""
    with bench.served(configuration) as connection:
        warm(bench, connection)
    if lost:
        forget(bench.cluster.data)
    with bench.served(configuration):
        return search(bench, bench.pgbench, seconds)


def failed_over(bench: Bench[Cluster], configuration: Configuration, seconds: float, *, lost: bool) -> Rate:
    """Kill the warm server, promote its standby, and return what clients see in the first seconds."""
    with bench.served(configuration) as connection:
        warm(bench, connection)
        with copied(bench) as standby, bench.pages(configuration) as taken:
            own = f"port = {standby.port}\nunix_socket_directories = '{standby.host}'\nlog_min_messages = log\n"
            (standby.data / bench.drop_in.name).write_text(f"{configuration.conf}\n{own}{taken}\n")
            if lost:
                forget(standby.data)
            standby.start()
            if PREWARM in configuration.conf:
                wait_for(standby, "autoprewarm successfully prewarmed")
            wait_for(standby, "started streaming WAL")
            bench.cluster.kill()
            standby.psql("SELECT pg_promote()")
            return search(bench, bench.pgbench_of(standby), seconds)


@contextmanager
def copied(bench: Bench[Cluster]) -> Iterator[Cluster]:
    """Make a standby by a base backup; yield it stopped."""
    standby = placed(bench.cluster.bin)
    try:
        place = (f"--pgdata={standby.data}", f"--dbname={bench.cluster.url()}")
        run(*as_server_user(standby.bin / "pg_basebackup", *place, "--write-recovery-conf", "--checkpoint=fast"))
        yield standby
    finally:
        standby.remove()


def wait_for(cluster: Cluster, message: str) -> None:
    """Wait until the server logs the message, for at most two minutes."""
    deadline = time.monotonic() + 120
    while message not in cluster.log.read_text():
        if time.monotonic() > deadline:
            raise HostError("the standby is not ready", where=str(cluster.log), seen=f"no message '{message}'")
        time.sleep(0.1)


CASES = {
    f"{event}, {'lost' if lost else 'kept'}{', autoprewarm' if library else ''}": (measure, library, lost)
    for event, measure in {"restart": restarted, "failover": failed_over}.items()
    for lost in (False, True)
    for library in ("", PREWARM)
}


def main() -> None:
    """Load, then restart and fail over, in the reverse order every other round; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vectors", type=int, default=280_000, help="An index of 2 GB by default.")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    with benched(Sizes(scale=1, vectors=options.vectors, seconds=options.seconds)) as bench:
        bench.load(hard=1000)
        with bench.served(Configuration("")) as connection:
            row = connection.execute("SELECT pg_relation_size('notes_embedding_idx') / 2^20").fetchone() or (0,)
        prod = configurations(bench.major, bench.pgvector, options.vectors, servers=2)[OURS]
        print(f"PostgreSQL {bench.server}, {options.vectors:,} vectors, index {float(str(row[0])):,.0f} MB", flush=True)
        found: dict[str, list[Rate]] = {}
        for number in range(options.rounds):
            for name in list(CASES)[:: -1 if number % 2 else 1]:
                measure, library, lost = CASES[name]
                changed = prod.changed(LIBRARIES.format(library))
                found.setdefault(name, []).append(measure(bench, changed, options.seconds, lost=lost))
                print(f"{name:34} {found[name][-1]}", flush=True)
        title = f"first {options.seconds:g} s, kernel's cache"
        print(f"\n{title:34}{'per second':>12}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}  p95, ratio to without")
        for name, rates in found.items():
            tps, *latencies = (statistics.median(getattr(rate, part) for rate in rates) for part in PARTS)
            base = found[name.removesuffix(", autoprewarm")]
            compared = ratio([rate.p95 for rate in rates], [rate.p95 for rate in base]).shown
            print(f"{name:34}{tps:12,.0f}" + "".join(f"{value:9.1f}" for value in latencies) + f"  {compared}")


if __name__ == "__main__":
    main()
