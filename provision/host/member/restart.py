"""Restart Patroni of this host while its server goes on. Does IO, as root.

In Patroni's maintenance mode, Patroni stops without its server and without giving up the leader key, and takes the
running server over when it starts (Patroni's manual, "Pause/Resume mode for the cluster"; `Ha.shutdown` in ha.py). The
mode is one of the whole cluster: until it ends, no member takes over. A restart that was killed leaves it on, and the
next one, or `finish`, turns it off.
"""

from __future__ import annotations

from collections.abc import Callable

from provision import system
from provision.errors import HostError
from provision.host.cluster import access, life
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni
from provision.host.server import patroni
from provision.plan.schema import Plan
from provision.system import run, wait

PAUSE_S = 60
"""Every member reads the mode once in each loop, which takes up to 10 s."""
START_S = 60
EVIDENCE = "member-restart"


def restart(plan: Plan, narrate: Callable[[str], None]) -> None:
    """Restart Patroni and wait until it has taken the server over. Raises HostError; the server then goes on.

    Failover stays off where Patroni does not come back: another member must not take over from a running primary.
    """
    reach = access.controlling(plan)
    api, dcs, name = Patroni(reach), Dcs.of(reach), reach.cluster.member
    refuse_pause(plan)
    system.keep(EVIDENCE, {"paused": True})
    life.set_pause(api, True)
    if not wait(lambda: _all_paused(dcs, reach.cluster.scope), PAUSE_S):
        _resume(api)
        raise HostError(
            f"the members did not turn automatic failover off within {PAUSE_S} s; nothing was restarted",
            where=reach.cluster.scope, run="provision cluster status",
        )  # fmt: skip
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
    if Patroni(reach).view().paused and not _ours():
        raise HostError(
            "automatic failover is off", where=reach.cluster.scope, seen="Patroni's maintenance mode",
            allowed="automatic failover on", run="provision cluster resume",
        )  # fmt: skip


def finish(plan: Plan) -> None:
    """Turn automatic failover on again if a killed restart of this host turned it off and Patroni runs."""
    if _ours():
        api = Patroni(access.controlling(plan))
        if wait(lambda: _runs(api), START_S):
            _resume(api)


def _ours() -> bool:
    return bool(system.evidence(EVIDENCE, of_root=True).get("paused"))


def _resume(api: Patroni) -> None:
    life.set_pause(api, False)
    system.keep(EVIDENCE, {"paused": False})


def _all_paused(dcs: Dcs, scope: str) -> bool:
    """Return whether every member has read the mode, which it writes into its key in etcd."""
    return all(record.get("pause") for record in life.records(dcs, scope).values())


def _runs(api: Patroni) -> bool:
    here = api.access.cluster.here
    return api.answers(here) and api.status(here).get("state") in ("running", "streaming")
