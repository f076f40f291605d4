"""Check the cluster of this host: a primary, members that stream, etcd, and poolers that follow. Does IO, read-only."""

from __future__ import annotations

from collections.abc import Iterator

from provision.checks.finding import Severity
from provision.checks.registry import Row, Scope, check
from provision.database import Connection
from provision.errors import HostError
from provision.host.cluster import access, life
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni
from provision.host.fleet import nodes, rights
from provision.plan.schema import Plan

NAMED = 5
"""Functions that one finding names."""


@check(
    "cluster",
    area="cluster",
    severity=Severity.CRITICAL,
    expected="a primary, members that stream from it, an etcd quorum, and poolers that lead to it",
    why="the cluster cannot replace its primary, or clients reach another server",
    fix="provision cluster status; docs/switchover.md",
)
def unhealthy(plan: Plan) -> Iterator[Row]:
    """Report each problem of the cluster that this host is a member of, or follows."""
    if plan.cluster is None or not plan.pooler.follows:
        return
    try:
        reach = access.of(plan)
        yield from life.status(Patroni(reach), Dcs.of(reach)).problems
    except HostError as error:
        yield f"{error.what}: {error.seen}"


@check(
    "fleet-rights",
    scope=Scope.SERVER,
    area="access",
    severity=Severity.CRITICAL,
    expected="no function of Citus that a tenant may use against another",
    why="a tenant can unregister or move the tables of others",
    tags="database",
)
def functions(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report functions of Citus that every role may call, as after an update of the extension."""
    if plan.fleet:
        rows = session.execute(rights.OPEN.encode(), (list(rights.CLOSED),)).fetchall()
        if rows:
            names = ", ".join(str(row[0]) for row in rows[:NAMED])
            yield f"{len(rows)} functions of Citus are open to every role: {names}"


@check(
    "fleet-groups",
    scope=Scope.SERVER,
    area="cluster",
    severity=Severity.CRITICAL,
    expected="every group of the fleet registered and active at the coordinator, with the same extensions",
    why="statements on the tenants of that group fail",
    fix="provision fleet status",
)
def groups(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report groups that the coordinator does not reach, and workers whose extensions have other versions."""
    if plan.fleet is None or plan.worker:
        return
    found = nodes.groups(session)
    active = {each.number for each in found if each.active}
    for number in sorted(set(plan.fleet.groups) - active):
        yield f"group {number} is not registered or not active"
    own = nodes.extensions(session)
    for host, theirs in nodes.worker_extensions(session).items():
        if theirs is None:
            yield f"the worker {host} does not answer"
        elif theirs != own:
            different = sorted(name for name in own if own[name] != theirs.get(name))
            seen = ", ".join(f"{name} {theirs.get(name, 'missing')} instead of {own[name]}" for name in different)
            yield f"the worker {host} has other extensions: {seen}", plan.site("database", every=True)
