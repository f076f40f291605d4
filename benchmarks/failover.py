"""Compare failovers: ours, and Patroni with its documented defaults behind HAProxy, in one run on this machine.

    python -m benchmarks.failover [ROUNDS]

Three members on the loopback, with real etcd, Patroni, PostgreSQL, PgBouncer and HAProxy (tests/members.py). A writer
commits 100 rows a second. Prints, for each fault, the longest time between two acknowledged rows and the acknowledged
rows that are gone afterwards; asserts nothing. Ours writes through a pooler that follows the primary, with synchronous
quorum commit and short timers; the other one through HAProxy, with asynchronous replication and 30/10/10 s.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from tests import ledger
from tests.ledger import Ledger
from tests.members import DATABASE, OURS, STOCK, USER, Host, Members, running

PAUSE_S = 60
PATIENCE_S = 180


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


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print("ours", file=sys.stderr)
    ours = campaign(OURS, rounds)
    print("Patroni's defaults", file=sys.stderr)
    stock = campaign(STOCK, rounds)
    print(f"{'fault':22}{'ours: longest gap':>20}{'lost':>8}{'defaults: longest gap':>24}{'lost':>8}")
    for name in FAULTS:
        row = [(max(gap for gap, _, _ in rows), sum(lost for _, _, lost in rows)) for rows in (ours[name], stock[name])]
        print(f"{name:22}{row[0][0]:>18.1f} s{row[0][1]:>8}{row[1][0]:>22.1f} s{row[1][1]:>8}")


if __name__ == "__main__":
    main()
