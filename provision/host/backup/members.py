"""The cluster around a restore in place: who may start it, failover off meanwhile, members rebuilt. Does IO as root.

The primary is restored while automatic failover is off and its Patroni is stopped: its key in etcd expires, and no
other member takes over. After the promotion Patroni adopts the server, and the replicas are cloned from it. Every step
can be repeated, for a run may have been killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from provision import system
from provision.database import ask, connect_pinned
from provision.errors import HostError, UsageError
from provision.host.backup.request import Request, cluster_of
from provision.host.cluster import access, life, orders
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import PRIMARY_ROLES, Patroni, PatroniError
from provision.host.server import patroni as service
from provision.plan.cluster import Cluster
from provision.plan.schema import Plan

ADOPT_S = 120
POLL_S = 1.0
Narrate = Callable[[str], None]


def judge(plan: Plan, request: Request) -> None:
    """Refuse a restore in place on a replica, or of another stanza. Raises HostError, UsageError."""
    cluster = cluster_of(plan, request.beside)
    if cluster is None:
        return
    if request.stanza not in ("", plan.backup.stanza):
        raise UsageError(
            "a cluster restores its own stanza in place",
            seen=f"--stanza {request.stanza}", allowed=plan.backup.stanza, run="add --beside PORT for a copy",
        )  # fmt: skip
    try:
        leader = Patroni(access.of(plan)).view().leader
    except PatroniError:
        return  # Patroni is stopped, here by a killed restore or on every member
    if leader and leader.name != cluster.member:
        raise HostError(
            "this member is a replica",
            where=plan.name, seen=f"the primary is {leader.name}", allowed="a restore of the primary",
            run=f"restore.yml --limit {leader.name}; or first: provision cluster switchover --to {cluster.member}",
        )  # fmt: skip


def detach(plan: Plan, narrate: Narrate) -> None:
    """Turn automatic failover off and stop Patroni here, which leaves the server alone. Raises HostError."""
    api = Patroni(access.of(plan))
    try:
        changed = life.set_pause(api, True)
    except PatroniError:
        if service.active():
            raise
        changed = _pause_in_etcd(api.access)  # a killed restore stopped Patroni here, and no other member answers
    if changed:
        narrate("automatic failover is off")
    until = time.monotonic() + ADOPT_S
    while waiting := [name for name, paused in _paused(api).items() if not paused]:
        if time.monotonic() > until:
            raise HostError(
                "members have not turned automatic failover off", seen=", ".join(waiting), run="provision cluster pause"
            )
        time.sleep(POLL_S)
    narrate(f"stopping {service.UNIT}")
    system.run("systemctl", "stop", service.UNIT)


def _pause_in_etcd(reach: access.Access) -> bool:
    """Turn automatic failover off as Patroni's REST API does; False if it is so already. Raises HostError."""
    dcs, key = Dcs.of(reach, "patroni"), orders.config_key(reach.cluster.scope)
    found = dcs.read(key).get(key)
    settings = json.loads(found.text) if found else {}
    if found is None or settings.get("pause"):
        return False
    if not dcs.replace(key, json.dumps({**settings, "pause": True}), found.revision):
        raise HostError("Patroni's configuration changed meanwhile", where=key, run="repeat the command")
    return True


def _paused(api: Patroni) -> dict[str, bool]:
    """Return whether each member that answers has noticed the pause."""
    found = {}
    for member in api.access.cluster.members:
        try:
            found[member.name] = bool(api.status(member).get("pause"))
        except PatroniError:
            continue
    return found


def attach(plan: Plan, narrate: Narrate) -> None:
    """Have Patroni adopt the promoted server as primary, turn failover on, rebuild the others. Raises HostError."""
    api, cluster = Patroni(access.of(plan)), access.required(plan)
    if not service.active():
        narrate(f"starting {service.UNIT}")
        service.start()
    _await_leadership(api, cluster)
    if _hidden(plan):
        narrate("opening the server to the network")
        api.restart(cluster.here)
        _await_leadership(api, cluster)
    if life.set_pause(api, False):
        narrate("automatic failover is on")
    rebuild(api, narrate)


def _await_leadership(api: Patroni, cluster: Cluster) -> None:
    until = time.monotonic() + ADOPT_S
    seen = ""
    while time.monotonic() < until:
        try:
            own = api.status(cluster.here)  # another member may still show what was before the restore
            leader = api.view().leader
        except PatroniError as error:
            seen = error.seen
        else:
            seen = f"{own.get('role')} {own.get('state')} here; primary {leader.name if leader else 'none'}"
            if (
                leader
                and leader.name == cluster.member
                and own.get("role") in PRIMARY_ROLES
                and own.get("state") == "running"
            ):
                return
        time.sleep(POLL_S)
    raise HostError(
        "Patroni does not make the restored server the primary", where=service.UNIT, seen=seen,
        run=f"journalctl -u {service.UNIT} -n 50; then provision restore promote",
    )  # fmt: skip


def _hidden(plan: Plan) -> bool:
    """Return whether the server still listens on its socket alone."""
    with system.as_user():
        session = connect_pinned(plan.server.url("postgres"), application="provision restore")
    with session:
        return ask(session, "SHOW listen_addresses") == [("",)]


def rebuild(api: Patroni, narrate: Narrate) -> None:
    """Clone every member that does not follow the primary. Raises HostError.

    All at once: a member is cloned from a running replica where there is one, which must not be on the old timeline.
    Patroni 4.0 does not rewind a replica that is ahead of the point where the primary's timeline begins.
    """
    cluster = api.access.cluster
    others = [each for each in cluster.members if each.name != cluster.member and not life.follows(api, each.name)]
    absent = [each.name for each in others if not api.answers(each)]
    if absent:
        commands = ", ".join(f"provision cluster reinitialise {name}" for name in absent)
        narrate(f"{', '.join(absent)} do not answer; when they are back: {commands}")
    left = [each for each in others if each.name not in absent]
    for each in left:
        narrate(f"cloning {each.name}")
        api.reinitialise(each)
    for each in left:
        life.returned(api, each.name, life.CLONE_S, narrate)
