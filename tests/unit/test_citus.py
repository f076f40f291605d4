"""A fleet in a plan: groups as clusters, the nodes' access, and what is refused; and the plan of a rebalance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provision.host.fleet import move
from provision.host.fleet.nodes import Group, Place
from provision.plan import packages, schema
from provision.plan.cluster import Cluster
from tests import topologies
from tests.unit.test_plan_validate import CLUSTER


def plan(name: str) -> schema.Plan:
    found = topologies.in_fleet(name)
    assert found.plan, found.problems
    return found.plan


def cluster(name: str) -> Cluster:
    found = plan(name).cluster
    assert found
    return found


def test_a_group_is_a_cluster_of_its_own() -> None:
    found = cluster("db2")
    assert found.scope == "minion/1"
    assert [each.name for each in found.members] == ["db2", "db3"]
    assert found.scopes == ("minion/0", "minion/1", "minion/2")
    assert found.fleet
    assert (found.fleet.name, found.fleet.group, found.fleet.groups) == ("minion", 1, (0, 1, 2))
    assert [each.name for each in found.fleet.others] == ["db1", "db4"]
    assert [each.name for each in found.dcs] == ["db1", "db2", "db3"]
    assert cluster("db4").dynamic["synchronous_mode_strict"] is False  # one member


def test_citus_is_first_and_the_same_in_patroni() -> None:
    found = plan("db2")
    texts = {each.name: each.text for each in found.server.settings}
    assert texts["shared_preload_libraries"].split(",")[0] == "citus"
    assert texts["auto_explain.log_analyze"] == "off"
    assert texts["wal_level"] == "logical"
    assert "sslmode=verify-full" in texts["citus.node_conninfo"]
    written = cluster("db2").dynamic["postgresql"]["parameters"]
    assert written["shared_preload_libraries"] == texts["shared_preload_libraries"]
    assert written["max_prepared_transactions"] == "200"
    assert packages.by_role(found, built=False)["database"] == ("postgresql-17-citus-14.0",)
    assert found.source.citus
    assert found.source.citus.package == "postgresql-17-citus-14.0"


def test_nodes_log_in_with_their_certificate_alone() -> None:
    found = plan("db2")
    rules = [" ".join(rule.split()) for rule in found.server.hba]
    assert [rule for rule in rules if "map=nodes" in rule] == [
        "hostssl minion postgres 127.0.0.1/32 cert map=nodes",
        "hostssl minion postgres ::1/128 cert map=nodes",
        "hostssl minion postgres 192.0.2.2/32 cert map=nodes",
        "hostssl minion postgres 192.0.2.3/32 cert map=nodes",
        "hostssl minion all 192.0.2.1/32 cert map=nodes",
        "hostssl minion all 192.0.2.4/32 cert map=nodes",
    ]
    assert rules.index("hostssl minion all 192.0.2.1/32 cert map=nodes") < rules.index("host all postgres all reject")
    assert not [rule for rule in rules if "trust" in rule]
    assert [(each.map, each.system, each.role) for each in found.server.ident if each.map == "nodes"] == [
        ("nodes", "minion_member", "all")
    ]


def test_backups_of_a_worker_have_a_stanza_of_their_own_and_no_node_makes_dumps() -> None:
    assert (plan("db1").backup.logical, plan("db2").backup.logical) == (False, False)
    assert plan("db2").backup.stanza == plan("db3").backup.stanza == f"{plan('db1').backup.stanza}-1"


@pytest.mark.parametrize(
    ("given", "groups", "expected"),
    [
        ({"postgresql_version": 15, "postgresql_repository": "pgdg"}, None, "postgresql_version is 15: expected 16 or"),
        ({"postgresql_settings": {"auto_explain.log_analyze": True}}, None, "auto_explain.log_analyze is on: expected"),
        ({"postgresql_settings": {"wal_level": "replica"}}, None, "wal_level is replica: expected logical"),
        ({"postgresql_settings": {"max_prepared_transactions": 0}}, None, "max_prepared_transactions is 0"),
        ({"citus_source": {}}, None, "citus_source is incomplete"),
        ({}, {"db1": 1, "db2": 1, "db3": 2}, "expected a host of group 0"),
        ({}, {"db1": 0, "db2": 0, "db3": 0}, "has group 0 alone: expected a worker"),
        ({"cluster_enabled": False}, None, "cluster_enabled is false: each group is a cluster"),
    ],
)
def test_refused(given: dict[str, Any], groups: dict[str, int] | None, expected: str) -> None:
    found = topologies.in_fleet("db2", given, groups)
    assert any(expected in each for each in found.problems), found.problems


def test_running_cluster_cannot_become_a_group() -> None:
    ours = {"ours": True, "clusters": [CLUSTER]}
    found = topologies.in_fleet("db2", probe={"plan_scope": "minion", **ours})
    expected = "this host belongs to the cluster minion, but the inventory names it minion/1"
    assert any(expected in each for each in found.problems)
    assert topologies.in_fleet("db2", probe={"plan_scope": "minion/1"}).plan


def group(number: int, *, draining: bool = False) -> Group:
    return Group(number, number + 1, f"192.0.2.{number}", 5432, active=True, draining=draining)


GIVEN = [group(0), group(1), group(2)]


def test_rebalance_evens_out_and_then_has_nothing_to_do() -> None:
    places = [Place("a", 1, 100), Place("b", 1, 60), Place("c", 1, 40), Place("d", 2, 10)]
    weights = {each.tenant: each.size for each in places}
    moves = move.plan(places, weights, GIVEN)
    assert [(each.tenant, each.source, each.target) for each in moves] == [("a", 1, 2)]
    after = [replace(each, group=2) if each.tenant == "a" else each for each in places]
    assert move.plan(after, weights, GIVEN) == []


def test_a_draining_group_gives_every_tenant_away() -> None:
    places = [Place("a", 1, 0), Place("b", 1, 5), Place("c", 2, 5)]
    groups = [group(0), group(1, draining=True), group(2), group(3)]
    moves = move.plan(places, {each.tenant: each.size for each in places}, groups)
    assert {each.tenant for each in moves} == {"a", "b"}
    uneven = [*places, Place("d", 2, 50), Place("e", 3, 1)]
    alone = move.plan(uneven, {each.tenant: each.size for each in uneven}, groups, only=1)
    assert [(each.tenant, each.source, each.target) for each in alone] == [("b", 1, 3), ("a", 1, 3)]
    assert all(each.target in (2, 3) for each in moves)
    assert move.plan(places, {}, [group(0), group(1, draining=True)]) == []
