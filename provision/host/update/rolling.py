"""What an update does differently on a host of a cluster. Does IO, as root.

Refuses to begin while the cluster lacks a member, because the restart of another one would then stop writes or lose the
quorum. A member's server restarts through Patroni. The primary becomes a replica first, by a planned switchover, and
so starts with the new programs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import psycopg

from provision.compatibility import etcd_problem
from provision.database import ask, connect
from provision.errors import DatabaseError, HostError
from provision.host.cluster import access, life, orders, primary, switchover, view
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni
from provision.host.dcs import admin
from provision.host.dcs import apply as etcd
from provision.host.update.apt import Package
from provision.host.upgrade import after
from provision.host.upgrade.sessions import databases, session_of
from provision.plan.cluster import Cluster
from provision.plan.schema import Plan
from provision.system import wait

SETTLE_S = 30
"""A killed switchover or restart needs a moment until every member streams again."""
ETCD = "etcd-server"
AVAILABLE = "SELECT name::text, default_version FROM pg_available_extensions"
Narrate = Callable[[str], None]


def refuse(plan: Plan, within_s: float = SETTLE_S, *, unfinished: bool = False) -> None:
    """Raise HostError if a member or an etcd member is missing after `within_s` seconds.

    After an `unfinished` update it may be this one: a reboot in the middle leaves packages half installed.
    """
    ours = "dpkg --configure -a && systemctl start patroni, if this host is the one; else " if unfinished else ""
    others = "provision cluster status; start the host, or remove it from the cluster (docs/cluster.md), and repeat"
    if found := settled(plan, within_s):
        raise HostError(
            "the cluster is not complete", where=access.required(plan).scope, seen="; ".join(found),
            allowed="every member streams from the primary and every etcd member is healthy; nothing was changed",
            run=ours + others,
        )  # fmt: skip


def settled(plan: Plan, within_s: float) -> list[str]:
    """Wait until nothing is missing, and return what still is. Raises PatroniError."""
    found: list[str] = []

    def complete() -> bool:
        found[:] = gaps(plan)
        return not found

    wait(complete, within_s)
    return found


def gaps(plan: Plan) -> list[str]:
    """Return what is missing of the cluster's redundancy, as this host sees it. Raises PatroniError.

    A host that only runs etcd asks etcd alone; one that only has a pooler asks nothing.
    """
    cluster = access.required(plan)
    if cluster.pooler:
        return []
    sick = [each for each in cluster.endpoints if not admin.healthy(plan, each)]
    if not cluster.member:
        return missing(None, cluster, (), sick)
    api = Patroni(access.controlling(plan))
    silent = [each.name for each in cluster.members if not api.answers(each)]
    return missing(api.view(), cluster, silent, sick)


def missing(seen: view.View | None, cluster: Cluster, silent: Collection[str], sick: Iterable[str]) -> list[str]:
    """Judge a view: `silent` members do not answer, `sick` endpoints of etcd have no quorum. Pure."""
    found = [f"Patroni on {name} does not answer" for name in silent]
    if seen and (leader := seen.leader):
        for member in cluster.members:
            here = seen.member(member.name)
            if member.name not in silent and not life.follows_in(seen, member.name):
                state = f"{here.state}, timeline {here.timeline}" if here else "unknown to Patroni"
                found.append(f"{member.name} does not stream from {leader.name} ({state})")
    elif seen:
        found.append("there is no primary")
    return found + [f"etcd at {each} does not answer or has no quorum" for each in sick]


def is_primary(plan: Plan) -> bool:
    """Return whether this host is its cluster's primary: it is updated after the other hosts. Raises PatroniError."""
    if not plan.members:
        return False
    leader = Patroni(access.controlling(plan)).view().leader
    return leader is not None and leader.name == access.required(plan).member


def refuse_etcd(plan: Plan, packages: Iterable[Package]) -> None:
    """Raise HostError if the new etcd would lock out the Patroni of a member of any cluster that uses it."""
    new = {each.name: each.candidate for each in packages}
    cluster = access.required(plan)
    if ETCD not in new or not cluster.dcs_member:
        return
    dcs = etcd.root(plan)
    known = {
        name: str(record.get("version", ""))
        for scope in cluster.scopes or (cluster.scope,)
        for name, record in life.records(dcs, scope).items()
    }
    if cluster.member and "patroni" in new:
        known[cluster.member] = new["patroni"]
    if found := locked_out(new[ETCD], known):
        raise HostError(
            "the new etcd would refuse Patroni; nothing was changed", where=plan.name, seen=found,
            run=f"apt-mark hold {ETCD} on every host with etcd, and repeat; once Patroni is new everywhere, unhold it",
        )  # fmt: skip


def locked_out(etcd_version: str, patroni: Mapping[str, str]) -> str:
    """Return why a version of etcd cannot serve these versions of Patroni, by member; "" if it can. Pure."""
    problems = {name: etcd_problem(version, etcd_version) for name, version in sorted(patroni.items())}
    return "; ".join(f"{name}: {problem}" for name, problem in problems.items() if problem)


def restart(plan: Plan, replaced: Callable[[], list[str]], narrate: Narrate) -> dict[str, Any]:
    """Restart this member's server through Patroni, the primary's by a switchover. Raises HostError.

    `replaced` tells whether the server still uses replaced files. One member of the cluster restarts at a time.
    """
    reach = access.controlling(plan)
    api, dcs, writable = Patroni(reach), Dcs.of(reach), primary.checker(plan)
    name, facts = reach.cluster.member, dict[str, Any]()
    with admin.lock(dcs, f"{orders.folder(reach.cluster.scope)}update", name):
        refuse(plan)
        if is_primary(plan):
            done = switchover.switchover(api, dcs, writable, narrate)
            facts = {"primary": done.target, "paused_seconds": round(done.paused_s, 1)}
            life.returned(api, name, life.RETURN_S, narrate)
        if replaced():
            life.restart(api, dcs, writable, narrate, only=name)
    return facts


def behind(plan: Plan) -> list[str]:
    """Say which members lack the files that an update of extensions on this primary needs. Raises DatabaseError."""
    cluster, wanted = access.required(plan), dict[str, object]()
    for database in databases(plan):
        with session_of(plan, database) as session:
            wanted |= {str(name): version for name, version in ask(session, after.OUTDATED)}
    found = []
    for member in cluster.members if wanted else ():
        theirs = _available(primary.url(plan, member)) if member.name != cluster.member else wanted
        found += [
            f"{member.name} has {name} {theirs.get(name)}, the primary {version}: first update {member.name}"
            for name, version in wanted.items()
            if theirs.get(name) != version
        ]
    return found


def _available(url: str) -> dict[str, object]:
    try:
        with connect(url, application="provision update") as session:
            return {str(name): version for name, version in session.execute(AVAILABLE).fetchall()}
    except psycopg.Error as error:
        raise DatabaseError("cannot read a member's extensions", seen=str(error).strip()) from None
