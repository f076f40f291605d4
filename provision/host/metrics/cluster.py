"""Metrics of the cluster as this member sees it: primary, etcd, streaming, the pooler's target. Does IO, as postgres.

`metrics` is pure. Each member reports itself and what it sees: one that is cut off differs from the others.
"""

from __future__ import annotations

from provision.host.cluster import access, life, orders, view
from provision.host.cluster.dcs import Dcs, DcsError
from provision.host.cluster.patroni import Patroni, PatroniError
from provision.host.metrics.exposition import Metric, single
from provision.plan.cluster import Cluster
from provision.plan.schema import Plan


def read(plan: Plan) -> list[Metric]:
    """Ask Patroni and etcd. Raises HostError if the passwords cannot be read."""
    reach = access.of(plan)
    try:
        seen = Patroni(reach).view()
    except PatroniError:
        seen = view.View(reach.cluster.scope, (), False)
    try:
        dcs = Dcs.of(reach)
        reports = orders.reports_of(dcs.read(orders.reports_key(reach.cluster.scope)), reach.cluster.scope)
    except DcsError:
        return metrics(reach.cluster, seen, None)
    return metrics(reach.cluster, seen, reports)


def metrics(cluster: Cluster, seen: view.View, reports: dict[str, orders.Report] | None) -> list[Metric]:
    """Return the samples. `seen` has no members if Patroni does not answer; `reports` is None if etcd does not."""
    leader, own = seen.leader, seen.member(cluster.member)
    report = (reports or {}).get(cluster.member)
    followed = None if reports is None or leader is None else float(bool(report and report.target == leader.name))
    return [
        single("provision_cluster_has_primary", "1 if Patroni has a primary.", float(leader is not None)),
        single("provision_cluster_is_primary", "1 if this member is the primary.", float(bool(own and own.leader))),
        single(
            "provision_cluster_member_streams",
            "1 if this member is the primary or streams from it, on its timeline.",
            float(life.follows_in(seen, cluster.member)),
        ),
        single("provision_cluster_timeline", "Timeline of this member.", float(own.timeline) if own else None),
        single(
            "provision_cluster_lag_bytes",
            "WAL that this replica has not replayed.",
            float(own.lag) if own and not own.leader and own.lag >= 0 else None,
        ),
        single(
            "provision_cluster_synchronous_replicas",
            "Replicas whose confirmation a commit may use.",
            float(sum(each.role in view.SYNCHRONOUS for each in seen.replicas)) if seen.members else None,
        ),
        single("provision_cluster_members", "Members that Patroni knows.", float(len(seen.members))),
        single("provision_cluster_members_expected", "Members in the inventory.", float(len(cluster.members))),
        single("provision_cluster_failover_off", "1 if automatic failover is off.", float(seen.paused)),
        single("provision_cluster_etcd_quorum", "1 if etcd answers a linearizable read.", float(reports is not None)),
        single("provision_cluster_pooler_follows", "1 if the pooler connects to the primary.", followed),
        Metric(
            "provision_cluster_pooler_target",
            "1 for the member that the pooler connects to.",
            (({"member": report.target}, 1.0),) if report and report.target else (),
        ),
        single(
            "provision_cluster_pending_restart",
            "1 if settings of this member wait for a restart.",
            float(own.pending_restart) if own else None,
        ),
    ]
