"""An update of a cluster: which hosts come last, what refuses it, which services each kind of host restarts. Pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from provision.host.update import apt, rolling, units
from provision.plan.schema import Plan
from tests.plans import sample
from tests.unit.test_cluster_view import CLUSTER, PRIMARY, row, seen

ROOT = Path(__file__).parents[2]
STREAMS = row("db2", "quorum_standby"), row("db3", "quorum_standby")


@pytest.mark.parametrize(
    ("primary", "order"),
    [
        ("db1", ["db2", "db3", "witness", "db1"]),
        ("db3", ["db1", "db2", "witness", "db3"]),
        ("", ["db1", "db2", "db3", "witness"]),
    ],
)
def test_primary_is_updated_after_every_other_host(primary: str, order: list[str]) -> None:
    play = next(each for each in yaml.safe_load((ROOT / "update.yml").read_text()) if each.get("serial"))
    loader = DataLoader()
    inventory = InventoryManager(loader, sources="db1,db2,db3,witness,")
    for host in inventory.get_hosts():  # as the tasks of role update make the groups
        name = "update_last" if host.name == primary else "update_first"
        inventory.add_group(name)
        inventory.groups[name].add_host(host)
    pattern = Templar(loader, variables={"groups": inventory.get_groups_dict()}).template(
        trust_as_template(play["hosts"])
    )
    assert [host.name for host in inventory.get_hosts(pattern, order=play.get("order"))] == order


def test_no_host_is_updated_where_nothing_is_new() -> None:
    play = next(each for each in yaml.safe_load((ROOT / "update.yml").read_text()) if each.get("serial"))
    pattern = Templar(DataLoader(), variables={"groups": {"database": ["db1"]}}).template(
        trust_as_template(play["hosts"])
    )
    assert pattern == "all:!all"


def test_complete_cluster_is_updated() -> None:
    assert rolling.missing(seen(PRIMARY, *STREAMS), CLUSTER, (), ()) == []


@pytest.mark.parametrize(
    ("members", "silent", "sick", "said"),
    [
        ((PRIMARY, STREAMS[0]), ["db3"], [], ["Patroni on db3 does not answer"]),
        ((PRIMARY, STREAMS[0]), [], [], ["db3 does not stream from db1 (unknown to Patroni)"]),
        ((PRIMARY, STREAMS[0], row("db3", "replica", "running")), [], [],
         ["db3 does not stream from db1 (running, timeline 4)"]),
        ((PRIMARY, STREAMS[0], row("db3", "replica", timeline=3)), [], [],
         ["db3 does not stream from db1 (streaming, timeline 3)"]),
        ((row("db1", "replica"), *STREAMS), [], [], ["there is no primary"]),
        ((PRIMARY, *STREAMS), [], ["192.0.2.3:2379"], ["etcd at 192.0.2.3:2379 does not answer or has no quorum"]),
    ],
)  # fmt: skip
def test_missing_redundancy_is_named(
    members: tuple[dict[str, object], ...], silent: list[str], sick: list[str], said: list[str]
) -> None:
    assert rolling.missing(seen(*members), CLUSTER, silent, sick) == said


def test_etcd_that_would_lock_out_a_member_s_patroni_is_refused() -> None:
    found = rolling.locked_out("3.5.28-1", {"db2": "4.0.7", "db1": "4.1.1", "db3": "4.0.7"})
    assert [line.split(":")[0] for line in found.split("; db")] == ["db2", "3"]
    assert "Patroni cannot log in to etcd 3.5.28 and newer before 4.1.1" in found
    assert rolling.locked_out("3.5.28-1", {"db1": "4.1.1", "db2": "4.1.2"}) == ""
    assert rolling.locked_out("3.5.16-4", {"db1": "4.0.7"}) == ""


def plan(*, member: str = "", dcs_member: str = "", pooler: str = "") -> Plan:
    base = sample(server={"patroni": bool(member)}, balancer={"enabled": True})
    return replace(base, cluster=replace(CLUSTER, member=member, dcs_member=dcs_member, pooler=pooler))


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (sample(), []),
        (plan(member="db1"), ["patroni", "etcd-server", "haproxy"]),
        (replace(plan(pooler="app1"), balancer=sample().balancer), ["patroni", "etcd-server"]),
    ],
)
def test_packages_that_are_not_of_this_host_s_cluster_are_left_alone(found: Plan, names: list[str]) -> None:
    installed = ["patroni", "etcd-server", "haproxy", "pgbouncer", "postgresql-17", "keepalived"]
    assert list(apt.ours(installed, 17, apt.tools(found))) == [*names, "pgbouncer", "postgresql-17"]


EXPORTERS = ["prometheus-node-exporter.service", "prometheus-postgres-exporter.service"]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (plan(member="db1", dcs_member="db1"),
         ["etcd.service", "patroni.service", "PostgreSQL 17, by Patroni", "haproxy.service", "pgbouncer.service",
          *EXPORTERS]),
        (plan(member="db1"),
         ["patroni.service", "PostgreSQL 17, by Patroni", "haproxy.service", "pgbouncer.service", *EXPORTERS]),
        (plan(dcs_member="witness"), ["etcd.service"]),
        (plan(pooler="app1"), ["pgbouncer.service"]),
        (sample(), ["postgresql@17-main.service", "pgbouncer.service", *EXPORTERS]),
    ],
)  # fmt: skip
def test_each_kind_of_host_restarts_its_own_services(found: Plan, names: list[str]) -> None:
    assert [unit.name for unit in units.of(found)] == names


def test_server_of_a_member_is_never_restarted_by_systemd() -> None:
    back = [unit.back for unit in units.of(plan(member="db1", dcs_member="db1"))]
    assert back[:4] == ["provision dcs restart", "provision member restart", "provision cluster restart --only db1",
                        "systemctl reload haproxy.service"]  # fmt: skip
    assert not any("postgresql" in command for command in back[:4])
