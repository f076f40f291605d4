"""The view of a cluster, the choice of the member to promote, and the orders and reports of a switchover. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provision.errors import HostError
from provision.host.cluster import dcs, life, orders, view
from provision.host.cluster.dcs import Value
from provision.plan.cluster import Cluster, DcsMember, Member

MEMBERS = tuple(Member(name, f"192.0.2.{at}", name, 5432, 6432) for at, name in enumerate(("db1", "db2", "db3"), 1))
CLUSTER = Cluster(
    scope="minion", member="db1", dcs_member="db1", members=MEMBERS,
    dcs=tuple(DcsMember(each.name, each.address, each.name) for each in MEMBERS),
    dcs_token="provision",  # noqa: S106 - a name
    rest_port=8008, client_port=2379, peer_port=2380, synchronous="quorum", replication_role="r", rewind_role="w",
    common_name="m", dynamic={}, watchdog=False,
)  # fmt: skip


def row(name: str, role: str, state: str = "streaming", **more: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "state": state, "host": "192.0.2.1", "port": 5432, "timeline": 4, **more}


def seen(*rows: dict[str, Any], **more: Any) -> view.View:
    return view.of({"members": list(rows), "scope": "minion", **more})


PRIMARY = row("db1", "leader", "running")


def test_reads_patroni_4_and_3() -> None:
    new = seen(PRIMARY, row("db2", "quorum_standby", lag=0), pause=True)
    assert (new.leader, new.paused) == (new.member("db1"), True)
    assert [(each.role, each.lag) for each in new.members] == [("leader", 0), ("quorum_standby", 0)]
    old = seen(row("db1", "master", "running"), row("db2", "replica", "running", lag="unknown"))
    assert old.leader is not None
    assert old.members[1].lag == -1


def test_running_replica_streams_if_the_primary_says_so() -> None:
    old = seen(PRIMARY, row("db2", "replica", "running"), row("db3", "replica", "running"))
    rows = [{"application_name": "db2", "state": "streaming"}, {"application_name": "db3", "state": "backup"}]
    assert [each.state for each in view.with_streams(old, rows).members] == ["running", "streaming", "running"]
    stopped = seen(PRIMARY, row("db2", "replica", "stopped"))
    assert view.with_streams(stopped, rows) == stopped


@pytest.mark.parametrize(
    ("member", "gap"),
    [
        (row("db2", "replica", lag=0), ""),
        (row("db2", "replica", lag=0, timeline=3), "is on timeline 3, not 4"),
        (row("db2", "replica", "stopped", lag=0), "is stopped, not streaming"),
        (row("db2", "replica", "running", lag=0), "is running, not streaming"),
        (row("db2", "replica", "in archive recovery", lag=0), "is in archive recovery, not streaming"),
    ],
)
def test_replica_follows_if_it_streams_on_the_leader_s_timeline(member: dict[str, Any], gap: str) -> None:
    found = seen(PRIMARY, member)
    assert found.leader is not None
    assert found.members[1].gap(found.leader) == gap


def test_another_answer_is_no_view() -> None:
    with pytest.raises(ValueError, match="not a cluster"):
        view.of({"error": "x"})


def test_chooses_a_synchronous_replica_with_the_least_lag() -> None:
    found = seen(PRIMARY, row("db2", "replica", lag=0), row("db3", "quorum_standby", lag=8))
    assert view.candidate(found, CLUSTER).name == "db3"
    found = seen(PRIMARY, row("db2", "quorum_standby", lag=9), row("db3", "quorum_standby", lag=8))
    assert view.candidate(found, CLUSTER).name == "db3"


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (row("db2", "replica", "stopped", lag=0), "is stopped, not streaming"),
        (row("db2", "replica", lag=0, timeline=3), "is on timeline 3, not 4"),
        (row("db2", "replica", lag="unknown"), "has an unknown lag"),
        (row("db2", "replica", lag=17 * 2**20), "lags 17 MiB (at most 16)"),
        (row("db2", "replica", lag=0, tags={"nofailover": True}), "has the tag nofailover"),
    ],
)
def test_refuses_a_member_that_must_not_become_primary(member: dict[str, Any], problem: str) -> None:
    found = seen(PRIMARY, member, row("db3", "quorum_standby", lag=0))
    with pytest.raises(HostError) as refused:
        view.candidate(found, CLUSTER, "db2")
    assert (refused.value.what, refused.value.seen) == ("db2 cannot become primary", problem)
    assert refused.value.allowed == "db3"
    assert view.candidate(found, CLUSTER).name == "db3"


def test_member_that_left_the_inventory_is_named_and_not_promoted() -> None:
    found = seen(PRIMARY, row("db9", "quorum_standby", lag=0), row("db3", "quorum_standby", lag=8))
    assert life.strangers(found, CLUSTER) == ["db9"]
    assert view.candidate(found, CLUSTER).name == "db3"
    with pytest.raises(HostError) as refused:
        view.candidate(found, CLUSTER, "db9")
    assert refused.value.seen == "is not in the inventory"


def test_with_synchronous_on_only_the_synchronous_replica_can_be_promoted() -> None:
    found = seen(PRIMARY, row("db2", "replica", lag=0), row("db3", "sync_standby", lag=0))
    with pytest.raises(HostError) as refused:
        view.candidate(found, replace(CLUSTER, synchronous="on"), "db2")
    assert refused.value.seen == "is not a synchronous replica (synchronous: on)"
    assert view.candidate(found, CLUSTER, "db2").name == "db2"


def test_refuses_a_switchover_without_a_leader_or_to_the_leader() -> None:
    with pytest.raises(HostError, match="the cluster has no leader"):
        view.candidate(seen(row("db2", "replica", lag=0)), CLUSTER)
    with pytest.raises(HostError, match="db1 is the primary already"):
        view.candidate(seen(PRIMARY, row("db2", "replica", lag=0)), CLUSTER, "db1")
    with pytest.raises(HostError, match="db9 is not a member"):
        view.candidate(seen(PRIMARY, row("db2", "replica", lag=0)), CLUSTER, "db9")
    with pytest.raises(HostError, match="no member can become primary"):
        view.candidate(seen(PRIMARY), CLUSTER)


def test_orders_and_reports_survive_their_keys() -> None:
    order = orders.Order("a1", "db1", "db2", orders.PAUSE, 30)
    report = orders.Report("db3", "db1", "a1", "draining", 2)
    keys = {orders.order_key("minion"): order.text, orders.report_key("minion", "db3"): report.text}
    found = {key: Value(key, text, 1, 0) for key, text in keys.items()}
    assert orders.order_of(found, "minion") == order
    assert orders.reports_of(found, "minion") == {"db3": report}
    assert orders.order_of(found, "other") is None


def test_damaged_keys_are_no_orders() -> None:
    key, other = orders.order_key("minion"), orders.report_key("minion", "db1")
    found = {key: Value(key, "{}", 1, 0), other: Value(other, "no JSON", 1, 0)}
    assert orders.order_of(found, "minion") is None
    assert orders.reports_of(found, "minion") == {}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"error": "etcdserver: permission denied", "code": 7}, "etcdserver: permission denied"),
        ({"error": {"message": "etcdserver: no leader"}}, "etcdserver: no leader"),
        ({"code": 9, "message": "etcdserver: user name not found", "details": []}, "etcdserver: user name not found"),
        ({"header": {"revision": "3"}, "succeeded": True}, ""),
    ],
)
def test_errors_of_every_etcd_are_recognised(answer: dict[str, Any], error: str) -> None:
    assert dcs._message(answer) == error
