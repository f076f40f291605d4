"""Orders to the followers of all poolers, and their reports, as keys in etcd. Pure but for `publish` and `Held`.

`provision cluster switchover` and `restart` write one order; each follower pauses and resumes its pooler as the order
says and reports below its own key. The order lives on a lease: when the command dies, etcd deletes it, and every
follower resumes. A follower that cannot reach etcd resumes on its own `seconds` after it paused.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from provision.errors import HostError
from provision.host.cluster.dcs import Dcs, Value

PREPARE, PAUSE, RESUME = "prepare", "pause", "resume"
LEASE_S = 10
"""How long an order outlives its command. The command renews it while it waits."""


@dataclass(frozen=True)
class Order:
    """One order. `source` is the primary before, `target` the primary after (the same for a restart)."""

    id: str
    source: str
    target: str
    phase: str
    """prepare: checkpoint on the primary; pause; resume."""
    seconds: int
    """Longest pause: a follower that hears nothing more resumes."""

    @property
    def text(self) -> str:
        """The value of the key."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Report:
    """State of one pooler. `order` is the id that it reports on."""

    pooler: str
    target: str
    """The member that the pooler's databases lead to."""
    order: str = ""
    state: str = "following"
    """following, prepared, draining, paused or resumed."""
    running: int = 0
    """Transactions that a pause waits for."""
    problem: str = ""

    @property
    def text(self) -> str:
        """The value of the key."""
        return json.dumps(asdict(self))


def folder(scope: str) -> str:
    """Return the prefix of our keys for a cluster."""
    return f"/provision/{scope}/"


def order_key(scope: str) -> str:
    """Return the key of the order."""
    return f"{folder(scope)}order"


def upgrade_key(scope: str) -> str:
    """Return the key that says which member is upgraded to another major."""
    return f"{folder(scope)}upgrade"


def reports_key(scope: str) -> str:
    """Return the prefix of the reports of all poolers."""
    return f"{folder(scope)}poolers/"


def report_key(scope: str, pooler: str) -> str:
    """Return the key of a pooler's report."""
    return f"{reports_key(scope)}{pooler}"


def patroni_folder(scope: str) -> str:
    """Return the prefix of Patroni's keys for a cluster."""
    return f"/service/{scope}/"


def leader_key(scope: str) -> str:
    """Return Patroni's key with the name of the leader."""
    return f"{patroni_folder(scope)}leader"


def config_key(scope: str) -> str:
    """Return Patroni's key with the dynamic configuration."""
    return f"{patroni_folder(scope)}config"


def initialize_key(scope: str) -> str:
    """Return Patroni's key with the system identifier of the cluster's database."""
    return f"{patroni_folder(scope)}initialize"


def order_of(found: Mapping[str, Value], scope: str) -> Order | None:
    """Read the order among keys; None if there is none, or a damaged one."""
    value = found.get(order_key(scope))
    try:
        return Order(**json.loads(value.text)) if value else None
    except (ValueError, TypeError):
        return None


def reports_of(found: Mapping[str, Value], scope: str) -> dict[str, Report]:
    """Read the reports among keys, by pooler."""
    reports = {}
    for key, value in found.items():
        if key.startswith(reports_key(scope)):
            try:
                report = Report(**json.loads(value.text))
            except (ValueError, TypeError):
                continue
            reports[report.pooler] = report
    return reports


class Held:
    """An order that this process holds. Use within `with`: the end always leaves the poolers resumed."""

    def __init__(self, dcs: Dcs, scope: str, source: str, target: str, seconds: int) -> None:
        """Prepare an order; entering the block publishes it."""
        self._dcs, self._scope, self._lease, self._renewed = dcs, scope, 0, 0.0
        self.order = Order(secrets.token_hex(4), source, target, PREPARE, seconds)

    def __enter__(self) -> Held:
        """Publish the order. Raises HostError while another one is held."""
        self._lease, self._renewed = self._dcs.lease(LEASE_S), time.monotonic()
        if not self._dcs.replace(order_key(self._scope), self.order.text, 0, self._lease):
            self._dcs.revoke(self._lease)
            raise HostError(
                "another switchover or restart of this cluster is running",
                where=self._scope,
                seen=f"key {order_key(self._scope)} exists",
                allowed=f"one at a time; the key of a killed command ends after {LEASE_S} s",
                run="provision cluster status",
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Resume the poolers and end the order. A failure here leaves both to the lease."""
        try:
            if self.order.phase == PAUSE:
                self.say(RESUME)
                self.wait(lambda reports: all(each.state == "resumed" for each in reports.values()), 5)
            self._dcs.revoke(self._lease)
        except HostError:
            return

    def say(self, phase: str) -> None:
        """Publish the order's next phase. Raises DcsError."""
        self.order = replace(self.order, phase=phase)
        self._dcs.put(order_key(self._scope), self.order.text, self._lease)

    def renew(self) -> bool:
        """Keep the order alive; False if it has ended. Raises DcsError."""
        if time.monotonic() - self._renewed > LEASE_S / 4:
            self._renewed = time.monotonic()
            return self._dcs.keep_alive(self._lease)
        return True

    def again(self) -> None:
        """Publish an order that etcd has deleted, as a new one in the same phase. Raises DcsError."""
        self.order = replace(self.order, id=secrets.token_hex(4))
        self._lease, self._renewed = self._dcs.lease(LEASE_S), time.monotonic()
        self._dcs.replace(order_key(self._scope), self.order.text, 0, self._lease)

    def reports(self) -> dict[str, Report]:
        """Return the reports on this order of the poolers whose followers live. Raises DcsError."""
        found = reports_of(self._dcs.read(reports_key(self._scope)), self._scope)
        return {
            name: each if each.order == self.order.id else Report(name, each.target) for name, each in found.items()
        }

    def wait(self, enough: Callable[[dict[str, Report]], bool], seconds: float, pause_s: float = 0.05) -> bool:
        """Wait until `enough` is true of the reports; False after `seconds`. Raises DcsError."""
        until = time.monotonic() + seconds
        while True:
            self.renew()
            if enough(self.reports()):
                return True
            if time.monotonic() > until:
                return False
            time.sleep(pause_s)
