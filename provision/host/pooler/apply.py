"""Bring the running pooler up to its files: start, reload or restart it, then log in as each role. Does IO, as root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from provision import addresses, system
from provision.host.pooler import console, login, take
from provision.plan.schema import Plan
from provision.quoting import conninfo


@dataclass(frozen=True)
class Applied:
    """What was done with the pooler, what still waits for a restart, and the logins that succeeded."""

    actions: tuple[str, ...]
    pending: tuple[str, ...]
    logins: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether anything was done with the pooler."""
        return bool(self.actions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for pending restarts."""
        if not self.pending:
            return ()
        return (
            f"the pooler waits for a restart, which pgbouncer_restart_allowed forbids: {', '.join(self.pending)}; run "
            "again with -e pgbouncer_restart_allowed=true when its clients may be cut",
        )


def apply(plan: Plan, passwords: Mapping[str, str]) -> Applied:
    """Converge the service, then prove it. Raises HostError and, for a login that fails, DatabaseError."""
    actions = []
    shown = system.run("systemctl", "show", console.UNIT, "-p", "ActiveState,UnitFileState,NeedDaemonReload")
    state = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
    if state["NeedDaemonReload"] == "yes":
        system.run("systemctl", "daemon-reload")
    if state["UnitFileState"] != "enabled":
        system.run("systemctl", "enable", console.UNIT)
        actions.append("enabled")
    if state["ActiveState"] != "active":
        system.run("systemctl", "start", console.UNIT)
        actions.append("started")
    taken = take.take()
    actions += [word for word, was in (("reloaded", taken.reloaded), ("resumed", taken.resumed)) if was]
    pending = taken.pending
    if pending and plan.pooler.restart_allowed:
        system.run("systemctl", "restart", console.UNIT)
        actions.append("restarted")
        pending = ()
    return Applied(tuple(actions), pending, tuple(login.prove(url(plan), passwords)))


def url(plan: Plan) -> str:
    """Return the libpq string by which this host reaches its pooler, as a client elsewhere does: by certified name."""
    place: dict[str, object] = {"host": plan.pooler.address}
    if plan.tls.enabled:
        place = {"host": plan.tls.name, "sslmode": "verify-full", "sslrootcert": plan.tls.ca}
        if addresses.parsed(plan.pooler.address):
            place["hostaddr"] = plan.pooler.address
    return conninfo({**place, "port": plan.pooler.port, "dbname": plan.access.database})
