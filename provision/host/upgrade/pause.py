"""Let clients of the poolers wait while no server serves, or while one hands over to the other. Does IO, as root.

In a cluster every pooler waits, and automatic failover is off from then on: a replica that took over would serve the
old data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from provision.host.cluster import access, hold, life
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni
from provision.host.pooler import console
from provision.host.server import patroni
from provision.host.upgrade import journal, members
from provision.host.upgrade.context import Upgrade

WAIT_S = 30.0
AT_MOST_S = 3600
"""After which the pooler resumes by itself, if this command was killed."""


@contextmanager
def paused(upgrade: Upgrade) -> Iterator[None]:
    """Pause the pooler for the duration of a `with` block, in a cluster every one; they resume in every outcome.

    Raises HostError; nothing is then stopped.
    """
    if upgrade.old_plan.server.patroni:
        with _cluster_paused(upgrade):
            yield
        return
    found = console.pause(WAIT_S, AT_MOST_S)
    if found.running:
        upgrade.narrate(f"{found.running} transactions still run after {WAIT_S:.0f} s and end with the server")
    try:
        yield
    finally:
        if found.pooler:
            console.resume()


@contextmanager
def _cluster_paused(upgrade: Upgrade) -> Iterator[None]:
    reach = access.controlling(upgrade.old_plan)
    api, state = Patroni(reach), journal.state(upgrade.facts)
    began = state in (*journal.DOWN, *journal.NEW_SERVES)
    members.refuse_replica(upgrade.old_plan)
    turned = False
    if patroni.active() or not began:
        upgrade.narrate("turn automatic failover off")
        turned = life.failover_off(api, Dcs.of(reach))
    with ExitStack() as stack:
        try:
            members.refuse_replica(upgrade.old_plan)  # it may have become one meanwhile
            members.mark(upgrade)
            held = hold.poolers(reach, upgrade.narrate, seconds=AT_MOST_S, wait_s=WAIT_S, force=began)
            stack.enter_context(held)
        except BaseException:
            if turned and patroni.active():  # nothing was stopped
                members.unmark(upgrade.old_plan)
                life.set_pause(api, False)
            raise
        yield
