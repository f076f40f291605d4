"""The section cluster of a plan: members, etcd, and every cluster that is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from provision.host.member.apply import changes
from provision.plan import connect, hba, load, packages, schema, secrets, validate
from provision.plan.cluster import Cluster
from provision.plan.context import Listed
from tests import plans, topologies

BOOKWORM = {"distribution_version": "12", "distribution_codename": "bookworm", "os": "Debian GNU/Linux 12 (bookworm)"}


def cluster(found: schema.Plan) -> Cluster:
    assert found.cluster
    return found.cluster


def other(hosts: tuple[Listed, ...], name: str, **values: Any) -> tuple[Listed, ...]:
    return tuple(replace(each, values={**each.values, **values}) if each.name == name else each for each in hosts)


def test_single_host_has_no_cluster() -> None:
    found = plans.plan("prod", plans.SAMPLE)
    assert found.cluster is None
    assert found.server.unit == "postgresql@17-main.service"
    assert {"etcd", "patroni"}.isdisjoint(packages.by_role(found, built=False))


def test_urls_list_every_member() -> None:
    tls = "sslmode=verify-full&sslrootcert=inventories/prod/tls/ca.crt&connect_timeout=3"
    owner = connect.connection(topologies.plan("db2"), "minion")
    assert owner.url(5432) == (
        f"postgresql://minion@192.0.2.1:5432,192.0.2.2:5432,192.0.2.3:5432/minion?{tls}&target_session_attrs=read-write"
    )
    application = connect.connection(topologies.plan("db2"))
    assert application.url() == (f"postgresql://minion_app@192.0.2.1:6432,192.0.2.2:6432,192.0.2.3:6432/minion?{tls}")
    assert "host='192.0.2.1,192.0.2.2,192.0.2.3' port='6432,6432,6432' " in application.conninfo()
    assert "," not in connect.connection(plans.plan("prod", plans.SAMPLE)).url()


def test_pooler_of_a_member_follows_the_primary() -> None:
    assert topologies.plan("db2").pooler.server == "@primary@"
    assert topologies.plan("db2", {"balancer_enabled": True}).balancer.enabled
    assert "haproxy" in packages.by_role(topologies.plan("db2", {"balancer_enabled": True}), built=False)["balancer"]
    assert not plans.plan("prod", {**plans.SAMPLE, "balancer_enabled": True}).balancer.enabled


def test_poolers_of_all_members_together_have_the_pools_of_one_host() -> None:
    member, single = topologies.plan("db2").pooler, plans.plan("prod", plans.SAMPLE).pooler
    assert (single.pools["minion_app"], member.pools["minion_app"]) == (25, 8)
    assert member.total * 3 <= single.total


def test_balancer_s_ports_are_judged() -> None:
    found = topologies.built("db2", {"balancer_enabled": True, "balancer_write_port": 6432})
    assert found.problems == ("balancer_write_port is 6432, as is pgbouncer_port: choose another port",)


MOVING = {"balancer_enabled": True, "balancer_address": "192.0.2.100/24"}
INTERFACES = {"interfaces": {"192.0.2.2": "eth0"}}


def test_address_that_moves_is_in_the_certificate_and_brings_keepalived() -> None:
    found = topologies.built("db2", MOVING, INTERFACES).plan
    assert found
    assert (found.balancer.address, found.balancer.interface, found.balancer.router_id) == (
        "192.0.2.100/24", "eth0", 51,
    )  # fmt: skip
    assert packages.by_role(found, built=False)["balancer"] == ("haproxy", "keepalived")
    assert "192.0.2.100" in found.tls.certificate("server").names
    assert packages.by_role(topologies.plan("db2", {"balancer_enabled": True}), built=False)["balancer"] == ("haproxy",)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"balancer_enabled": False}, "balancer_address is set and balancer_enabled is false: "),
        ({"balancer_address": "192.0.2.100"}, "balancer_address is '192.0.2.100': expected an IPv4 address with its "),
        ({"balancer_address": "fd00::1/64"}, "balancer_address is 'fd00::1/64': expected an IPv4 address with its "),
        ({"balancer_address": "192.0.2.3/24"}, "balancer_address is 192.0.2.3/24, which is the address of db3: "),
        (
            {"balancer_address": "198.51.100.9/24"},
            "balancer_address is 198.51.100.9/24 and this host's cluster_address is 192.0.2.2: expected an address in ",
        ),
        ({"balancer_router_id": 256}, "balancer_router_id is 256: expected 1 to 255"),
    ],
)
def test_address_that_cannot_move_is_refused(given: dict[str, Any], problem: str) -> None:
    (found,) = topologies.built("db2", {**MOVING, **given}, INTERFACES).problems
    assert found.startswith(problem)


def test_members_that_share_the_address_agree_on_it() -> None:
    hosts = topologies.listed(MOVING)
    without = other(hosts, "db3", balancer_address="", balancer_enabled=False)
    assert topologies.built("db2", MOVING, INTERFACES, hosts=without).problems == ()
    different = other(hosts, "db3", balancer_router_id=52)
    assert topologies.built("db2", MOVING, INTERFACES, hosts=different).problems == (
        "balancer_router_id is 51 here and 52 on db3: expected one value",
    )


def test_address_on_no_interface_is_refused() -> None:
    (found,) = topologies.built("db2", MOVING, {"interfaces": {"10.0.0.2": "eth0"}}).problems
    assert found.startswith("balancer_address is 192.0.2.100/24 and no interface of this host has 192.0.2.2 as its ")


def test_every_member_has_the_same_section_but_for_its_own_names() -> None:
    first, third = cluster(topologies.plan("db1")), cluster(topologies.plan("db3"))
    assert (first.member, third.member, first.dcs_member, third.dcs_member) == ("db1", "db3", "db1", "db3")
    assert replace(first, member="", dcs_member="") == replace(third, member="", dcs_member="")
    assert [each.address for each in first.members] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert third.endpoints == ("192.0.2.3:2379", "192.0.2.1:2379", "192.0.2.2:2379")


def test_plan_of_a_member_survives_its_file() -> None:
    found = topologies.plan("db2")
    assert load.of(json.loads(load.text(found))) == found
    assert topologies.PASSPHRASE not in load.text(found)
    assert secrets.cluster(topologies.PASSPHRASE)["rest"]["password"] not in load.text(found)


def test_patroni_runs_the_server_of_a_member_alone() -> None:
    assert topologies.plan("db1").server.unit == "patroni.service"
    hosts = topologies.listed(dcs=("witness",), count=2)
    witness = topologies.plan("witness", hosts=hosts, database=False)
    assert (cluster(witness).member, cluster(witness).dcs_member) == ("", "witness")
    assert not witness.server.patroni
    assert packages.by_role(witness, built=False)["patroni"] == ()
    assert packages.by_role(witness, built=False)["etcd"] == ("etcd-server", "etcd-client")


def test_witness_gets_the_packages_of_etcd_alone() -> None:
    hosts, roles = topologies.listed(dcs=("witness",), count=2), (*plans.CONTEXT.roles, "tls", "etcd", "patroni")
    found = topologies.built("witness", hosts=hosts, database=False, judge=validate.judge_other, roles=roles)
    assert found.state, found.problems
    assert found.state.missing_packages == (
        "etcd-client", "etcd-server", "openssl", "python3-click", "python3-cryptography", "python3-psycopg", "ssl-cert",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "dcs", "expected"),
    [
        (3, (), ["db1", "db2", "db3"]),
        (5, (), ["db1", "db2", "db3"]),
        (2, ("w",), ["db1", "db2", "w"]),
        (2, ("w1", "w2", "w3"), ["w1", "w2", "w3"]),
        (3, ("db1", "db2", "w"), ["db1", "db2", "w"]),
    ],
)
def test_etcd_runs_on_three_hosts(count: int, dcs: tuple[str, ...], expected: list[str]) -> None:
    found = cluster(topologies.plan("db1", hosts=topologies.listed(dcs=dcs, count=count)))
    assert [each.name for each in found.dcs] == expected


def test_members_let_each_other_in_by_certificate_alone() -> None:
    lines = [" ".join(line.split()) for line in topologies.plan("db2").server.hba]
    assert "hostssl replication minion_replica 192.0.2.1/32 cert map=members" in lines
    assert "hostssl postgres minion_rewind 192.0.2.3/32 cert map=members" in lines
    assert lines.index("host all,replication minion_replica all reject") < lines.index(
        "host all all 127.0.0.1/32 scram-sha-256"
    )
    assert "hostssl all minion_pooler 192.0.2.3/32 cert" in lines
    assert "hostssl all all 192.0.2.3/32 scram-sha-256" in lines
    ident = topologies.plan("db2").server.ident
    assert schema.Ident(hba.MEMBERS, "minion_member", "minion_replica") in ident
    assert schema.Ident("minion_replica", "postgres", "minion_replica") in ident


def test_server_listens_where_the_members_reach_it() -> None:
    assert topologies.plan("db2").server.listen_addresses == ("localhost", "192.0.2.2")
    wide = topologies.plan("db2", {"postgresql_listen_addresses": ["*"]})
    assert wide.server.listen_addresses == ("*",)


def test_members_have_a_certificate_of_both_uses_and_one_without_a_name_for_etcd() -> None:
    found = topologies.plan("db2").tls
    member, client = found.certificate("member"), found.certificate("etcd-client")
    assert (member.purpose, member.common_name) == ("peer", "minion_member")
    assert {"192.0.2.2", "db2", "127.0.0.1"} <= set(member.names)
    assert (client.purpose, client.common_name) == ("client", "")


def test_prod_loses_nothing_by_default() -> None:
    found = cluster(topologies.plan("db1"))
    assert found.synchronous == "quorum"
    assert {name: found.dynamic[name] for name in ("synchronous_mode", "synchronous_mode_strict", "failsafe_mode")} == {
        "synchronous_mode": "quorum",
        "synchronous_mode_strict": True,
        "failsafe_mode": True,
    }
    assert (found.dynamic["ttl"], found.dynamic["loop_wait"], found.dynamic["primary_start_timeout"]) == (20, 2, 0)
    parameters = found.dynamic["postgresql"]["parameters"]
    assert (parameters["wal_level"], parameters["wal_log_hints"], parameters["max_connections"]) == (
        "replica",
        "on",
        "100",
    )


def test_older_patroni_has_no_quorum_and_another_word() -> None:
    built = topologies.built("db1", {"postgresql_version": 15, "pgvector_install_method": "source"}, BOOKWORM)
    assert built.plan, built.problems
    found = cluster(built.plan)
    assert (found.synchronous, found.dynamic["synchronous_mode"]) == ("on", True)
    assert found.dynamic["master_start_timeout"] == 0
    assert "primary_start_timeout" not in found.dynamic
    assert any(
        text.startswith("Patroni 3 has no quorum commit: synchronous mode is on") for text in built.plan.warnings
    )


def test_pool_of_a_member_is_aligned_for_the_senders_that_patroni_sets() -> None:
    given = {"postgresql_version": 15, "pgvector_install_method": "source"}
    host = {**BOOKWORM, "memory_mb": 8192}
    for count in (2, 4):
        hosts = topologies.listed(given, count=count, dcs=("w1",) if count == 2 else ("w1", "w2", "w3"))
        found = topologies.built("db1", given, host, hosts=hosts)
        assert found.plan, found.problems
        senders = cluster(found.plan).dynamic["postgresql"]["parameters"]["max_wal_senders"]
        named = {each.name: each.text for each in found.plan.server.settings}
        of_single = {**plans.SAMPLE, **given, "postgresql_settings": {"max_wal_senders": int(senders)}}
        alone = {each.name: each.text for each in plans.plan("prod", of_single, probe=host).server.settings}
        assert (senders, named["wal_buffers"]) == (str(10 + count), alone["wal_buffers"])


def refused(name: str = "db1", given: dict[str, Any] | None = None, **changed: Any) -> tuple[str, ...]:
    found = topologies.built(name, given, **changed)
    assert found.plan is None
    return found.problems


@pytest.mark.parametrize(
    ("count", "dcs", "begin"),
    [
        (1, (), "cluster_enabled is true and the cluster minion has 1 member: expected two or more hosts"),
        (2, (), "the cluster minion has two hosts: etcd needs a third one"),
        (3, ("w1", "w2"), "etcd would run on 2 hosts (w1, w2): expected 3 or 5 hosts in the group dcs"),
        (3, ("w1", "w2", "w3", "w4"), "etcd would run on 4 hosts"),
    ],
)
def test_refuses_a_cluster_that_cannot_decide(count: int, dcs: tuple[str, ...], begin: str) -> None:
    (problem,) = refused(hosts=topologies.listed(dcs=dcs, count=count))
    assert problem.startswith(begin)


def test_refuses_members_that_differ() -> None:
    hosts = other(topologies.listed(), "db3", postgresql_version=16)
    (problem,) = refused(hosts=hosts)
    assert problem == "postgresql_version is 17 here and 16 on db3: expected one value on all members"


def test_another_cluster_of_the_inventory_is_left_alone() -> None:
    two = [
        replace(each, name=f"x{each.name}", values={**each.values, "cluster_name": "other"})
        for each in topologies.listed()
    ]
    witnesses = tuple(
        replace(each, database=False, dcs=True) for each in topologies.listed(dcs=("w1", "w2", "w3"), count=0)
    )
    found = cluster(topologies.plan("db1", hosts=(*topologies.listed(), *two, *witnesses)))
    assert [each.name for each in found.members] == ["db1", "db2", "db3"]
    assert [each.name for each in found.dcs] == ["w1", "w2", "w3"]
    (problem,) = refused(hosts=(*topologies.listed(), *two))
    assert problem.startswith("the inventory has 2 clusters (minion, other) and no group dcs")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("db2.example.com", "cluster_address of db2 is 'db2.example.com': expected the IP address at which the other"),
        ("127.0.0.1", "cluster_address of db2 is 127.0.0.1: expected an address that other hosts reach"),
        ("192.0.2.1", "cluster_address of db2 is 192.0.2.1, as is that of db1"),
    ],
)
def test_refuses_an_address_that_members_cannot_use(address: str, problem: str) -> None:
    hosts = tuple(replace(each, address=address) if each.name == "db2" else each for each in topologies.listed())
    (found,) = refused(hosts=hosts)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("given", "begin"),
    [
        (
            {"cluster_passphrase": "minion_secret of development cluster"},
            "cluster_passphrase is the published one of development",
        ),
        ({"cluster_passphrase": "short"}, "cluster_passphrase has 5 characters: expected at least 20"),
        ({"tls_enabled": False}, "cluster_enabled is true and tls_enabled is false: members use certificates"),
        ({"etcd_client_port": 8008}, "etcd_client_port is 8008, as is cluster_rest_port"),
        (
            {"backup_repository_host": "", "backup_repository_inventory_name": ""},
            "backup_physical is true and the repository is local: every member archives to one repository",
        ),
    ],
)
def test_refuses_variables_with_which_no_cluster_works(given: dict[str, Any], begin: str) -> None:
    assert [text for text in refused(given=given) if text.startswith(begin)]


def test_passwords_differ_by_purpose_and_passphrase() -> None:
    found = secrets.cluster(topologies.PASSPHRASE)
    every = [*found["etcd"].values(), found["rest"]["password"]]
    assert len(set(every)) == 5
    assert all(len(each) == 32 for each in every)
    assert secrets.cluster(topologies.PASSPHRASE) == found
    assert secrets.cluster("another secret of the test")["etcd"]["root"] != found["etcd"]["root"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"ttl": 20, "postgresql": {"use_slots": True, "parameters": {"max_connections": "100"}}}, {}),
        ({"ttl": 20, "postgresql": {"use_slots": True, "parameters": {"max_connections": 100}}}, {}),
        (
            {"ttl": 30, "pause": True, "postgresql": {"use_slots": True, "parameters": {"max_connections": "100"}}},
            {"ttl": 20},
        ),
        (
            {"ttl": 20, "postgresql": {"use_slots": True, "parameters": {"max_connections": "50"}}},
            {"postgresql": {"parameters": {"max_connections": "100"}}},
        ),
        ({}, {"ttl": 20, "postgresql": {"use_slots": True, "parameters": {"max_connections": "100"}}}),
    ],
)
def test_only_what_differs_of_the_dynamic_configuration_is_changed(
    found: dict[str, Any], expected: dict[str, Any]
) -> None:
    wanted = {"ttl": 20, "postgresql": {"use_slots": True, "parameters": {"max_connections": "100"}}}
    assert changes(wanted, found) == expected
