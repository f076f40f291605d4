"""Hold the clients of every pooler of a cluster while its primary's server is down for minutes. Does IO.

An order in etcd pauses the poolers (`orders`). A thread keeps it alive, because the work meanwhile is a program that
takes minutes; when this process dies, the order ends and every pooler resumes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from provision.errors import HostError
from provision.host.cluster import orders, switchover
from provision.host.cluster.access import Access
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni

RENEW_S = orders.LEASE_S / 8


@contextmanager
def poolers(
    reach: Access, narrate: Callable[[str], None], *, seconds: int, wait_s: float, force: bool = False
) -> Iterator[None]:
    """Pause every pooler for the duration of a `with` block, `seconds` at most; they resume in every outcome.

    Transactions that still run after `wait_s` seconds end with the server. `force` goes on without poolers whose
    follower is missing. Raises HostError; nothing is then paused.
    """
    dcs, name = Dcs.of(reach), reach.cluster.member
    names = switchover.pooler_names(Patroni(reach), dcs, force=force, otherwise="and repeat")
    with orders.Held(dcs, reach.cluster.scope, name, name, seconds) as held:
        switchover.prepare(held, names, narrate)
        switchover.pause(held, names, wait_s, narrate, force=True)
        with _renewed(held):
            yield


@contextmanager
def _renewed(held: orders.Held) -> Iterator[None]:
    """Keep an order alive from a thread, which alone uses the order's client meanwhile."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(RENEW_S):
            with suppress(HostError):
                if not held.renew():  # etcd had no quorum for too long: the poolers have resumed
                    held.again()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
