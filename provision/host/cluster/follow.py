"""The follower: keep this host's pooler on the cluster's primary, and carry out orders to pause and resume it. Does IO.

A loop reads Patroni's leader key and the order (`orders`) from etcd several times a second. A new primary becomes the
pooler's target only once its server accepts writes. While etcd is silent, the members' REST APIs are asked; while they
are silent too, or contradict each other, the target stays. The loop survives every failure of the things it talks to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from provision import system
from provision.errors import ProvisionError
from provision.host.cluster import orders, primary
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.orders import PAUSE, PREPARE, Order, Report
from provision.host.cluster.patroni import Patroni
from provision.host.cluster.pooler import Pooler
from provision.plan.cluster import Cluster, Member

IDLE_S = 0.2
BUSY_S = 0.05
"""Pause between two looks, without and with an order."""
SILENT_S = 1.0
"""Pause between two looks while etcd is silent."""
LEASE_S = 15
"""Life of the report of a follower that stopped: a switchover waits for no other."""
EVIDENCE = "follow"


@dataclass
class Follower:
    """The loop's parts and state."""

    cluster: Cluster
    name: str
    """This pooler's name: the host's name in the inventory."""
    dcs: Dcs
    patroni: Patroni
    pooler: Pooler
    writable: primary.Writable
    checkpoint: Callable[[], None]
    stream_from: Callable[[Member], None]
    """Have the standby of this host stream from a new primary."""
    narrate: Callable[[str], None]
    _order: str = ""
    """Id of the order that is being carried out, or was the last one."""
    _resume_by: float = 0
    _report: Report | None = None
    _lease: int = 0
    _renewed: float = 0
    _refreshed: float = 0
    _complaint: str = ""
    _prepared: Future[None] | None = None
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def run(self, stop: Callable[[], bool]) -> None:
        """Follow until `stop` returns true. A pause that an earlier process left is ended first."""
        self._guard(self.pooler.resume)
        while not stop():
            time.sleep(self.step())
        self._guard(self.pooler.resume)

    def step(self) -> float:
        """Look once and act; return the seconds until the next look."""
        try:
            found = self.dcs.read(orders.leader_key(self.cluster.scope), orders.order_key(self.cluster.scope))
        except ProvisionError as error:  # etcd is silent, or a certificate cannot be read at this moment
            self._complain(str(error))
            self._guard(self._without_etcd)
            return SILENT_S
        leader = found.get(orders.leader_key(self.cluster.scope))
        order = orders.order_of(found, self.cluster.scope)
        done = self._guard(lambda: self._carry_out(order, leader.text if leader else ""))
        done = self._guard(self._tell) and done
        if done:
            self._complain("")
        return BUSY_S if self.pooler.paused or (order and order.phase != orders.RESUME) else IDLE_S

    def _carry_out(self, order: Order | None, leader: str) -> None:
        self._lead_to(leader, planned=self.pooler.paused)
        if self.pooler.paused:
            self._go_on_with(order)
        elif order and order.phase == PREPARE:
            self._prepare(order)
        elif order and order.phase == PAUSE and (self._order, self._now.state) != (order.id, "resumed"):
            self._resume_by = time.monotonic() + order.seconds
            self._order = order.id
            self.pooler.begin_pause(order.seconds)
            self._go_on_with(order)
        elif not order and self._now.state != "following":
            self._say(state="following", running=0, problem="")

    def _go_on_with(self, order: Order | None) -> None:
        """Decide whether a paused pooler stays paused."""
        target, ours = self.pooler.target, order is not None and order.id == self._order
        switched = bool(order and order.target != order.source and target == order.target)
        if order is None or not ours or order.phase != PAUSE or switched or time.monotonic() > self._resume_by:
            self._resume()
        elif self.pooler.drained():
            self._say(order=self._order, state="paused", running=0)
        else:
            self._say(order=self._order, state="draining", running=self.pooler.running())

    def _resume(self) -> None:
        late = time.monotonic() > self._resume_by
        self.pooler.resume()
        self._say(order=self._order, state="resumed", running=0)
        self.narrate(f"resumed on {self.pooler.target}" + (", because the longest pause has passed" if late else ""))
        self._threads.submit(self._guard, self.pooler.settle)

    def _prepare(self, order: Order) -> None:
        """Write a checkpoint if this is the primary's host, and report when it is done."""
        if self._order != order.id:
            self._order = order.id
            self._say(order=order.id, state="following", running=0, problem="")
            self._prepared = self._threads.submit(self.checkpoint) if order.source == self.cluster.member else None
        elif self._now.state != "prepared" and (self._prepared is None or self._prepared.done()):
            error = self._prepared.exception() if self._prepared else None
            self._say(state="prepared", problem=str(error) if error else "")

    def _lead_to(self, name: str, *, planned: bool) -> None:
        """Route the pooler to a member by name, once its server accepts writes."""
        member = primary.member(self.cluster, name)
        target = self.pooler.target
        if member is None:
            return
        if name == target:
            if time.monotonic() - self._refreshed > LEASE_S:  # the template may have changed
                self._refreshed = time.monotonic()
                self.pooler.route(member, self._left)
            return
        if not self.writable(member):
            return
        self.pooler.route(member, self._left)
        if planned and self.cluster.member not in ("", target, name):
            self._threads.submit(self._guard, lambda: self.stream_from(member))
        self.narrate(f"{target or 'no primary'} -> {name}")
        self._say(target=name)
        with suppress(OSError):
            system.keep(EVIDENCE, {"at": system.stamp(), "from": target, "target": name, "planned": planned})
        if not planned:
            ended = self.pooler.end_hanging(member, self.cluster.members)
            if ended:
                self.narrate(f"disconnected {', '.join(ended)}: transactions hung on another member")

    def _without_etcd(self) -> None:
        if self.pooler.paused and time.monotonic() > self._resume_by:
            self._resume()
        target = primary.member(self.cluster, self.pooler.target)
        if target is not None and self.writable(target):
            return
        self._lead_to(primary.by_rest(self.patroni), planned=self.pooler.paused)

    @property
    def _left(self) -> int:
        return max(0, round(self._resume_by - time.monotonic()))

    @property
    def _now(self) -> Report:
        return self._report or Report(self.name, self.pooler.target)

    def _say(self, **changes: str | int) -> None:
        now = replace(self._now, **changes)  # type: ignore[arg-type]
        if now != self._report:
            self._report = now
            self._publish()

    def _tell(self) -> None:
        """Keep the report in etcd alive."""
        if time.monotonic() - self._renewed > LEASE_S / 3 or not self._lease:
            self._renewed = time.monotonic()
            if not self._lease or not self.dcs.keep_alive(self._lease):
                self._lease = self.dcs.lease(LEASE_S)
                self._report = self._now
                self._publish()

    def _publish(self) -> None:
        if self._report and self._lease:
            self.dcs.put(orders.report_key(self.cluster.scope, self.name), self._report.text, self._lease)

    def _guard(self, act: Callable[[], object]) -> bool:
        """Call a function; print a failure instead of ending the loop. False if it failed."""
        try:
            act()
        except (ProvisionError, OSError) as error:
            self._complain(str(error))
            return False
        return True

    def _complain(self, text: str) -> None:
        """Print a failure once, not at each look."""
        if text and text != self._complaint:
            self.narrate(" ".join(text.split()))
        self._complaint = text
