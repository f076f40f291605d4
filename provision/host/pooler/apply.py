"""Bring the running pooler up to its files: start, reload or restart it, then log in as each role. Does IO, as root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from provision import addresses, system
from provision.database import connect
from provision.host.cluster import access, pooler, primary
from provision.host.pooler import console, login, take
from provision.plan.schema import Plan
from provision.quoting import conninfo
from provision.tuning.connections import OTHER_ROLES, SUPERUSER_RESERVED


@dataclass(frozen=True)
class Applied:
    """What was done with the pooler, what still waits for a restart, and the logins that succeeded."""

    actions: tuple[str, ...]
    pending: tuple[str, ...]
    logins: tuple[str, ...]
    crowded: str = ""
    """How the pools of all poolers exceed the primary's connections; "" if they fit."""

    @property
    def changed(self) -> bool:
        """Whether anything was done with the pooler."""
        return bool(self.actions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for pending restarts, and one for pools that are too large."""
        found = (self.crowded,) if self.crowded else ()
        if not self.pending:
            return found
        return (
            *found,
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
    # As long as PgBouncer may take to find that an earlier failure is gone.
    patience_s = 2 * (plan.pooler.server_login_retry_s + plan.pooler.server_connect_timeout_s)
    logins = tuple(login.prove(url(plan), passwords, patience_s))
    return Applied(tuple(actions), pending, logins, _crowded(plan) if plan.pooler_alone else "")


def _crowded(plan: Plan) -> str:
    """Compare the pools of all poolers with the primary's connections, which the plan of this host cannot know.

    Raises DatabaseError if the primary does not answer.
    """
    cluster = access.required(plan)
    member = primary.member(cluster, pooler.target(pooler.FILE))
    if member is None:
        return ""
    with system.as_user(), connect(primary.url(plan, member), application="provision pool") as session:
        row = session.execute("SELECT current_setting('max_connections')::int").fetchone()
    return crowded(plan.pooler.total, len(cluster.followers), int(str(row[0])) if row else 0)


def crowded(total: int, poolers: int, max_connections: int) -> str:
    """Return a sentence if so many poolers with pools of this size exceed the server's connections. Pure."""
    room = max_connections - SUPERUSER_RESERVED - OTHER_ROLES
    if total * poolers <= room:
        return ""
    return (
        f"the {poolers} poolers of the cluster may open {total * poolers} server connections, and the primary has "
        f"{room} for pools: set pgbouncer_pools to smaller sizes"
    )


def url(plan: Plan) -> str:
    """Return the libpq string by which this host reaches its pooler, as a client elsewhere does: by certified name."""
    place: dict[str, object] = {"host": plan.pooler.address}
    if plan.tls.enabled:
        place = {"host": plan.tls.name, "sslmode": "verify-full", "sslrootcert": plan.tls.ca}
        if addresses.parsed(plan.pooler.address):
            place["hostaddr"] = plan.pooler.address
    return conninfo({**place, "port": plan.pooler.port, "dbname": plan.access.database})
