"""Metrics of a cluster as one member sees it. Pure."""

from __future__ import annotations

from provision.host.cluster import orders, view
from provision.host.metrics import cluster
from provision.host.metrics.exposition import render
from tests.unit.test_cluster_view import CLUSTER, PRIMARY, row, seen


def values(found: view.View, reports: dict[str, orders.Report] | None) -> dict[str, str]:
    text = render(cluster.metrics(CLUSTER, found, reports))
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("provision_cluster_"): value for name, value in lines}


def reports(**targets: str) -> dict[str, orders.Report]:
    return {name: orders.Report(name, target) for name, target in targets.items()}


def test_primary_of_a_healthy_cluster() -> None:
    found = seen(PRIMARY, row("db2", "quorum_standby", lag=0), row("db3", "replica", lag=0))
    assert values(found, reports(db1="db1")) == {
        "has_primary": "1", "is_primary": "1", "member_streams": "1", "timeline": "4", "members": "3",
        "members_expected": "3", "failover_off": "0", "etcd_quorum": "1", "pooler_follows": "1",
        'pooler_target{member="db1"}': "1", "synchronous_replicas": "1", "pending_restart": "0",
    }  # fmt: skip


def test_replica_that_neither_streams_nor_follows() -> None:
    leader, own = row("db2", "leader", "running"), row("db1", "replica", "running", timeline=3, lag=4096)
    found = values(seen(leader, own, row("db3", "replica"), pause=True), reports(db1="db3"))
    assert {name: found[name] for name in ("is_primary", "member_streams", "timeline", "lag_bytes")} == {
        "is_primary": "0", "member_streams": "0", "timeline": "3", "lag_bytes": "4096",
    }  # fmt: skip
    assert (found["failover_off"], found["pooler_follows"]) == ("1", "0")
    assert found['pooler_target{member="db3"}'] == "1"
    silent = values(seen(leader, own), reports(db3="db2"))  # its own follower does not report
    assert silent["pooler_follows"] == "0"
    assert [name for name in silent if name.startswith("pooler_target")] == []


def test_member_that_reaches_neither_patroni_nor_etcd_reports_no_primary() -> None:
    found = values(view.View("minion", (), False), None)
    assert found == {
        "has_primary": "0", "is_primary": "0", "member_streams": "0", "members": "0", "members_expected": "3",
        "failover_off": "0", "etcd_quorum": "0",
    }  # fmt: skip
