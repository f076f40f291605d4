"""Restart Patroni of this host without stopping PostgreSQL. Does IO, as root.

In Patroni's maintenance mode, Patroni stops without its server and without giving up the leader key, and takes the
running server over when it starts (Patroni's manual, "Pause/Resume mode for the cluster"; `Ha.shutdown` in ha.py). The
mode is one of the whole cluster: until it ends, no member takes over. A restart that was killed leaves it on, and the
next one, or `finish`, turns it off. Without a running server there is nothing to keep: Patroni in this mode would not
start one, so the mode stays off.
"""

from __future__ import annotations

from collections.abc import Callable

from provision import system
from provision.errors import HostError
from provision.host.cluster import access, life, orders
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni
from provision.host.server import cluster as server
from provision.host.server import patroni
from provision.plan.schema import Plan
from provision.system import run, wait

START_S = 60
EVIDENCE = "member-restart"


def restart(plan: Plan, narrate: Callable[[str], None]) -> None:
    """Restart Patroni and wait until it has taken the server over. Raises HostError; the server then goes on.

    Failover stays off where Patroni does not come back: another member must not take over from a running primary.
    """
    reach = access.controlling(plan)
    api, dcs, name = Patroni(reach), Dcs.of(reach), reach.cluster.member
    refuse_pause(plan)
    if not _serves(plan):
        finish(plan)
        narrate("restart Patroni; no server runs that it could keep")
        run("systemctl", "restart", patroni.UNIT)
        life.returned(api, name, life.RETURN_S, narrate)
        return
    _pause(api, dcs)
    narrate("restart Patroni; automatic failover is off, and the server goes on")
    run("systemctl", "restart", patroni.UNIT)
    if not wait(lambda: _runs(api), START_S):
        raise HostError(
            "Patroni has not taken its server over; the server goes on, and automatic failover is off",
            where=patroni.UNIT, seen=patroni.last_words(),
            run=f"journalctl -u {patroni.UNIT} -n 50; when Patroni runs again: provision cluster resume",
        )  # fmt: skip
    _resume(api)
    life.returned(api, name, life.RETURN_S)


def refuse_pause(plan: Plan) -> None:
    """Raise HostError while automatic failover is off, unless a killed restart of this host turned it off."""
    reach = access.controlling(plan)
    if Patroni(reach).view().paused and not _ours(reach):
        raise HostError(
            "automatic failover is off", where=reach.cluster.scope, seen="Patroni's maintenance mode",
            allowed="automatic failover on", run="provision cluster resume",
        )  # fmt: skip


def finish(plan: Plan) -> None:
    """Turn automatic failover on again if a killed restart of this host turned it off and Patroni runs.

    Without a server too: Patroni waits for the end of the mode to start one.
    """
    reach = access.controlling(plan)
    if _ours(reach):
        api = Patroni(reach)
        if not _serves(plan) or wait(lambda: _runs(api), START_S):
            _resume(api)


def _serves(plan: Plan) -> bool:
    return server.Postmaster.read(plan.server.data) is not None


def _pause(api: Patroni, dcs: Dcs) -> None:
    """Turn automatic failover off, and note that this host did. Raises HostError."""
    system.keep(EVIDENCE, {"paused": True})
    try:
        life.failover_off(api, dcs)
    except HostError:
        _resume(api)
        raise
    system.keep(EVIDENCE, {"paused": True, "revision": _revision(dcs, api.access.cluster.scope)})


def _ours(reach: access.Access) -> bool:
    """Return whether a restart of this host turned automatic failover off, and no command has changed it since."""
    found = system.evidence(EVIDENCE, of_root=True)
    if not found.get("paused"):
        return False
    now = _revision(Dcs.of(reach), reach.cluster.scope)
    return bool(found.get("revision", now) == now)


def _revision(dcs: Dcs, scope: str) -> int:
    """Return the revision of the cluster's dynamic configuration, which has the mode."""
    return next((each.revision for each in dcs.read(orders.config_key(scope)).values()), 0)


def _resume(api: Patroni) -> None:
    life.set_pause(api, False)
    system.keep(EVIDENCE, {"paused": False})


def _runs(api: Patroni) -> bool:
    here = api.access.cluster.here
    return api.answers(here) and api.status(here).get("state") in ("running", "streaming")
