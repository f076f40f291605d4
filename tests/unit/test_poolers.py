"""The group pooler in a plan: what its hosts have, what members change for them, and every group that is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provision.errors import HostError
from provision.host.cluster import access
from provision.host.dcs import apply
from provision.host.tls import endpoints
from provision.plan import connect, load, packages, schema, validate
from provision.plan.cluster import Cluster, PoolerHost
from provision.plan.context import Listed
from tests import plans, topologies

HOSTS = topologies.listed(poolers=("app1",))
ADDRESS = "192.0.2.103"


def pooler(given: dict[str, Any] | None = None, **changed: Any) -> schema.Plan:
    return topologies.plan("app1", given, hosts=HOSTS, database=False, judge=validate.judge_other, **changed)


def cluster(found: schema.Plan) -> Cluster:
    assert found.cluster
    return found.cluster


def differing(option: str, value: Any) -> tuple[Listed, ...]:
    return tuple(replace(each, values={**each.values, option: value}) if each.pooler else each for each in HOSTS)


def test_host_of_the_group_follows_and_has_no_server() -> None:
    found = pooler()
    assert (cluster(found).member, cluster(found).pooler, cluster(found).dcs_member) == ("", "app1", "")
    assert (found.pooler_alone, found.pooler.follows, found.server.patroni) == (True, True, False)
    assert found.members == ()
    wanted = packages.by_role(found, built=False)
    assert wanted["pgbouncer"] == ("pgbouncer",)
    assert (wanted["etcd"], wanted["patroni"]) == ((), ())
    assert [each.unit for each in endpoints(found)] == ["pgbouncer.service"]
    assert load.of(json.loads(load.text(found))) == found


def test_host_of_the_group_gets_the_packages_of_a_pooler_alone() -> None:
    roles = (*plans.CONTEXT.roles, "tls", "etcd")
    found = topologies.built("app1", hosts=HOSTS, database=False, judge=validate.judge_other, roles=roles)
    assert found.state, found.problems
    assert found.state.missing_packages == (
        "openssl", "pgbouncer", "python3-click", "python3-cryptography", "python3-psycopg", "ssl-cert",
    )  # fmt: skip


def test_host_of_the_group_has_no_certificate_of_members() -> None:
    found = pooler().tls
    assert [each.name for each in found.certificates] == ["server", "pooler-client", "etcd-client"]
    assert found.certificate("pooler-client").common_name == "minion_pooler"
    assert ADDRESS in found.certificate("server").names
    assert ADDRESS in found.certificate("etcd-client").names


def test_host_of_the_group_limits_its_clients_and_not_those_of_a_server() -> None:
    found = pooler({"pgbouncer_listen_addresses": ["*"], "postgresql_listen_addresses": ["*"]})
    assert (found.server.network_connections, found.pooler.address_clients) == (0, 750)
    assert packages.by_role(found, built=False)["pgbouncer"] == ("pgbouncer", "nftables")


def test_members_admit_the_pooler_by_certificate_and_its_clients_by_password() -> None:
    lines = [" ".join(line.split()) for line in topologies.plan("db2", hosts=HOSTS).server.hba]
    assert f"hostssl all minion_pooler {ADDRESS}/32 cert" in lines
    assert f"hostssl all all {ADDRESS}/32 scram-sha-256" in lines
    assert [line for line in lines if ADDRESS in line and ("replica" in line or "rewind" in line)] == []
    assert lines.index("host all postgres all reject") < lines.index(f"hostssl all all {ADDRESS}/32 scram-sha-256")


def test_all_poolers_share_the_pools_of_one_host() -> None:
    single = plans.plan("prod", plans.SAMPLE).pooler
    found = [topologies.plan("db1", hosts=HOSTS).pooler, pooler().pooler]
    assert [each.pools["minion_app"] for each in found] == [6, 6]
    assert all(each.total * 4 <= single.total for each in found)


def test_urls_of_members_list_the_pooler_for_applications_only() -> None:
    found = connect.connection(topologies.plan("db2", hosts=HOSTS))
    assert f"@192.0.2.1:6432,192.0.2.2:6432,192.0.2.3:6432,{ADDRESS}:6432/" in found.url()
    assert ADDRESS not in found.url(5432)
    assert found.conninfo().startswith(f"host='192.0.2.1,192.0.2.2,192.0.2.3,{ADDRESS}' port='6432,6432,6432,6432' ")


def test_urls_of_the_pooler_s_host_lead_to_it_and_directly_to_the_members() -> None:
    found = connect.connection(pooler({"pgbouncer_listen_addresses": ["*"]}))
    assert found.url().startswith(f"postgresql://minion_app@{ADDRESS}:6432/minion?")
    assert found.url(5432).startswith("postgresql://minion_app@192.0.2.1:5432,192.0.2.2:5432,192.0.2.3:5432/minion?")
    assert "target_session_attrs=read-write" in found.url(5432)
    local = connect.connection(pooler({"pgbouncer_listen_addresses": ["localhost"]}))
    assert "@127.0.0.1:6432/" in local.url()
    assert found.notes == ()


def test_every_host_of_the_cluster_knows_the_poolers() -> None:
    expected = (PoolerHost("app1", ADDRESS, 6432),)
    assert cluster(topologies.plan("db1", hosts=HOSTS)).poolers == cluster(pooler()).poolers == expected
    assert cluster(pooler()).followers == ("db1", "db2", "db3", "app1")
    assert cluster(pooler()).scopes == ("minion",)


@pytest.mark.parametrize(
    ("group", "step"),
    [
        ("database", "each database host has a pooler already: remove it from the group pooler"),
        ("dcs", "a host that runs etcd has certificates that a pooler host must not have: use separate hosts"),
        ("backup", "a backup host must not reach the databases: use another host for the pooler"),
    ],
)
def test_refuses_a_host_of_another_group_before_a_member_changes(group: str, step: str) -> None:
    found = topologies.built("db1", hosts=HOSTS, groups={group: ["db1", "app1"], "pooler": ["app1"]})
    assert found.problems == (f"app1 is in the groups pooler and {group}: {step}",)


def test_refuses_a_group_without_a_cluster() -> None:
    single = {**plans.SAMPLE, "tls_enabled": True}
    values = plans.values("prod", single).values
    hosts = (
        Listed("db1", "192.0.2.1", True, False, values),
        Listed("app1", "192.0.2.9", False, False, values, pooler=True),
    )
    groups = {"all": ["db1", "app1"], "database": ["db1"], "pooler": ["app1"]}
    (problem,) = plans.built("prod", single, name="db1", listed=hosts, groups=groups).problems
    assert problem == (
        "app1 is in the group pooler and its cluster_enabled is false: a pooler without a server follows a cluster; "
        "set cluster_enabled to true for all hosts, or remove the group pooler"
    )


@pytest.mark.parametrize("name", ["db1", "app1"])
def test_refuses_a_cluster_that_does_not_exist(name: str) -> None:
    judge = validate.judge if name == "db1" else validate.judge_other
    given = {"cluster_name": "other"} if name == "app1" else {}
    found = topologies.built(name, given, hosts=differing("cluster_name", "other"), database=name == "db1", judge=judge)
    assert (
        "cluster_name of app1, a host of the group pooler, is other: expected the name of a cluster in the inventory "
        "(minion)"
    ) in found.problems


def test_refuses_a_pooler_that_differs_from_the_members() -> None:
    found = topologies.built("db1", hosts=differing("postgresql_port", 5433))
    assert found.problems == ("postgresql_port is 5433 on app1 and 5432 on db1: expected the value of the members",)


def test_refuses_an_address_that_others_do_not_reach() -> None:
    hosts = tuple(replace(each, address="127.0.0.1") if each.pooler else each for each in HOSTS)
    assert topologies.built("db1", hosts=hosts).problems == (
        "cluster_address of app1 is 127.0.0.1: expected an address that other hosts reach",
    )


def test_refuses_a_port_that_another_program_holds() -> None:
    row = {"port": 6432, "address": "127.0.0.1", "pid": 7, "command": "node", "unit": "app.service", "units": []}
    found = topologies.built("app1", {}, {"listeners": [row]}, hosts=HOSTS, database=False, judge=validate.judge_other)
    assert found.problems == (
        "port 6432 is taken by process 7 (node, app.service): stop it (systemctl disable --now app.service), or set "
        "pgbouncer_port to a free port",
    )
    row = {**row, "command": "pgbouncer", "unit": "pgbouncer.service", "units": ["pgbouncer.service"]}
    assert pooler(probe={"listeners": [row], "manifests": ["pgbouncer"]})


def test_follower_may_read_what_it_needs_and_write_reports_alone() -> None:
    found = apply.grants(replace(cluster(pooler()), scopes=("minion", "other")))
    assert found["follower"] == [
        ("READ", "/service/minion/leader"), ("READ", "/provision/minion/order"),
        ("READ", "/service/other/leader"), ("READ", "/provision/other/order"),
        ("READWRITE", "/provision/minion/poolers/"), ("READWRITE", "/provision/other/poolers/"),
    ]  # fmt: skip


def test_access_of_a_pooler_has_neither_passwords_of_members_nor_control(tmp_path: Path) -> None:
    path, plan = tmp_path / "cluster.json", pooler()
    path.write_text(json.dumps({"etcd": {"follower": "of the follower"}}))
    found = access.of(plan, path)
    assert (found.user, found.rest, dict(found.etcd)) == ("follower", None, {"follower": "of the follower"})
    assert found.for_rest.name == "etcd-client"
    with pytest.raises(HostError, match="this host may not control the cluster") as error:
        access.controlling(plan)
    assert (error.value.allowed, error.value.run) == ("db1, db2, db3", "the same command on db1")


def test_access_of_a_member_needs_the_passwords_of_members(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"etcd": {"follower": "of the follower"}}))
    with pytest.raises(HostError, match="cannot read the passwords of the cluster"):
        access.of(topologies.plan("db1", hosts=HOSTS), path)
