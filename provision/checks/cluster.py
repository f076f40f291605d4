"""Check the cluster of this host: a primary, members that stream, etcd, and poolers that follow. Does IO, read-only."""

from __future__ import annotations

from collections.abc import Iterator

from provision.checks.finding import Severity
from provision.checks.registry import Row, check
from provision.errors import HostError
from provision.host.cluster import access, life
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni
from provision.plan.schema import Plan


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
