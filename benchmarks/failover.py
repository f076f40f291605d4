"""Compare failovers: ours, and Patroni with its documented defaults behind HAProxy, in one run on this machine.

    python -m benchmarks.failover [ROUNDS] [--only faults|commits]

Three members on the loopback, with real etcd, Patroni, PostgreSQL, PgBouncer and HAProxy (tests/members.py). A writer
commits 100 rows a second. Prints, for each fault, the longest time between two acknowledged rows and the acknowledged
rows that are gone afterwards; asserts nothing. Ours writes through a pooler that follows the primary, with synchronous
quorum commit and short timers; the other one through HAProxy, with asynchronous replication and 30/10/10 s.

Then it measures in our cluster what waiting for a replica costs: pgbench on the primary, with synchronous_commit off
for replicas (`local`) and on, in turn. Here fsync is on. The members share the disk and the CPUs of this machine, and
no network is between them: add its round trip to each commit.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from provision.controller.bench.intervals import ratio
from provision.controller.bench.pgbench import Pgbench, Rate
from tests import ledger
from tests.ledger import Ledger
from tests.members import DATABASE, OURS, STOCK, USER, Host, Members, running

PAUSE_S = 60
PATIENCE_S = 180
CLIENTS = (1, 8, 32)
SCALE = 10
COMMIT_ROUNDS = 5
COMMIT_SECONDS = 8
COMMITS = ("local", "on")
"""Values of synchronous_commit: the primary's disk alone, and a replica's disk as well."""


def planned(members: Members) -> None:
    """Switch over, ours with a pause of the poolers."""
    source, target = members.leader(), members.candidate()
    if members.dynamic is STOCK:
        members.patroni().switchover(source.member, target.name)
    else:
        source.provision("cluster", "switchover", "--to", target.name)


def postmaster(members: Members) -> None:
    """Kill the primary's postmaster."""
    members.leader().kill_server()


def host_killed(members: Members) -> None:
    """Kill every process of the primary's host; start them after a failover."""
    host = members.leader()
    host.kill_all()
    time.sleep(45)
    host.start_all()


def host_paused(members: Members) -> None:
    """Stop every process of the primary's host for a minute, then continue them."""
    host = members.leader()
    host.signal_all(signal.SIGSTOP)
    time.sleep(PAUSE_S)
    host.signal_all(signal.SIGCONT)


FAULTS: dict[str, Callable[[Members], None]] = {
    "planned switchover": planned,
    "postmaster killed": postmaster,
    "host killed": host_killed,
    "host paused 60 s": host_paused,
}


def route(members: Members, host: Host) -> str:
    """Return the URL of the writer, through a host that the fault spares."""
    return host.url(members.balancer_port if members.dynamic is STOCK else host.member.pooler_port)


def measure(members: Members, act: Callable[[Members], None]) -> tuple[float, int, int]:
    """Return the longest gap in seconds, acknowledged rows, and lost rows of one fault."""
    with members.superuser(members.leader(), DATABASE) as session:
        session.execute(b"TRUNCATE ledger")
    book = Ledger({"writer": route(members, members.replicas()[-1])})
    with book.writing():
        begun = time.monotonic()
        act(members)
        members.until(lambda: book.resumed(begun + 1), PATIENCE_S, "the writer has no acknowledgement")
    members.until(members.healthy, PATIENCE_S, "the cluster is not healthy")
    leader = members.leader()
    (account,) = book.accounts(f"host={leader.home} port={leader.member.port} user=postgres dbname={DATABASE}")
    return account.gap_s, account.acknowledged, len(account.lost)


def campaign(dynamic: dict[str, Any], rounds: int) -> dict[str, list[tuple[float, int, int]]]:
    """Run every fault against one cluster."""
    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in FAULTS}
    with running(dynamic) as members:
        with members.superuser(members.leader(), DATABASE) as session:
            session.execute(ledger.CREATE)
            session.execute(f"ALTER TABLE ledger OWNER TO {USER}".encode())
        for name, act in FAULTS.items():
            for _ in range(rounds):
                found[name].append(measure(members, act))
                print(f"  {name}: gap {found[name][-1][0]:.1f} s, lost {found[name][-1][2]}", file=sys.stderr)
    return found


def commits() -> None:
    """Print transactions per second and p95 with and without waiting for a replica, and their ratio by round."""
    with running(OURS, poolers=False) as members:
        for host in members.hosts.values():
            with members.superuser(host) as session:
                session.execute(b"ALTER SYSTEM SET fsync = on")
                session.execute(b"SELECT pg_reload_conf()")
        leader = members.leader()
        place = {"PGHOST": str(leader.home), "PGPORT": str(leader.member.port), "PGUSER": "postgres"}
        pgbench = Pgbench({**place, "PGDATABASE": DATABASE}, "public", 1)
        pgbench.initialise(SCALE)
        print(f"{'clients':>8}{'local tps':>11}{'on tps':>9}{'on / local':>20}{'local p95':>11}{'on p95':>9}")
        for clients in CLIENTS:
            found: dict[str, list[Rate]] = {name: [] for name in COMMITS}
            for number in range(COMMIT_ROUNDS):
                for name in COMMITS if number % 2 else reversed(COMMITS):
                    found[name].append(pgbench.measure(COMMIT_SECONDS, clients, synchronous_commit=name))
            local, waits = found.values()
            change = ratio([each.tps for each in waits], [each.tps for each in local])
            tps, p95 = zip(*((_median(rates, "tps"), _median(rates, "p95")) for rates in (local, waits)), strict=True)
            print(f"{clients:>8}{tps[0]:>11.0f}{tps[1]:>9.0f}{change.text:>20}{p95[0]:>8.1f} ms{p95[1]:>6.1f} ms")


def _median(rates: list[Rate], name: str) -> float:
    return float(statistics.median(getattr(rate, name) for rate in rates))


def faults(rounds: int) -> None:
    """Print the table of faults."""
    print("ours", file=sys.stderr)
    ours = campaign(OURS, rounds)
    print("Patroni's defaults", file=sys.stderr)
    stock = campaign(STOCK, rounds)
    print(f"{'fault':22}{'ours: longest gap':>20}{'lost':>8}{'defaults: longest gap':>24}{'lost':>8}")
    for name in FAULTS:
        row = [(max(gap for gap, _, _ in rows), sum(lost for _, _, lost in rows)) for rows in (ours[name], stock[name])]
        print(f"{name:22}{row[0][0]:>18.1f} s{row[0][1]:>8}{row[1][0]:>22.1f} s{row[1][1]:>8}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Compare failovers, and commits with and without a replica.")
    parser.add_argument("rounds", nargs="?", type=int, default=1, help="rounds of each fault [default: 1]")
    parser.add_argument("--only", choices=("faults", "commits"))
    options = parser.parse_args()
    if options.only != "commits":
        faults(options.rounds)
    if options.only != "faults":
        commits()


if __name__ == "__main__":
    main()
