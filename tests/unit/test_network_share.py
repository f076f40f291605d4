"""Connections that the network may hold: computed, given, refused, and where there is no limit."""

from __future__ import annotations

from typing import Any

import pytest

from provision.plan import packages, schema
from provision.tuning.network_share import NetworkShare, share
from tests import plans

OPEN = {**plans.SAMPLE, "postgresql_listen_addresses": ["192.0.2.1"]}


@pytest.mark.parametrize(
    ("max_connections", "pools", "connections", "per_address"),
    [(100, 39, 47, 35), (60, 39, 7, 5), (200, 0, 186, 139), (45, 35, 2, 1), (15, 7, 2, 1)],
)
def test_share_leaves_pools_administrators_backup_and_monitoring(
    max_connections: int, pools: int, connections: int, per_address: int
) -> None:
    assert share(max_connections, pools, -1) == NetworkShare(connections, per_address)


def test_given_number_is_kept_or_refused_with_what_is_left() -> None:
    assert share(100, 39, 20) == NetworkShare(20, 15)
    assert share(100, 39, 1) == NetworkShare(1, 1)
    (refusal,) = share(100, 39, 60).refusals
    assert refusal == (
        "postgresql_network_connections is 60: max_connections 100 - 14 for administrators, backup and monitoring - 39 "
        "for the pools leaves 47: reduce it or pgbouncer_pools, or raise postgresql_settings.max_connections"
    )


def test_zero_is_no_limit() -> None:
    assert share(100, 39, 0) == NetworkShare(0, 0)


def limits(given: dict[str, Any], probe: dict[str, Any] | None = None, profile: str = "prod") -> schema.Plan:
    return plans.plan(profile, given, probe={"addresses": ["192.0.2.1"], **(probe or {})})


def test_prod_limits_a_port_that_is_open_to_the_network() -> None:
    plan = limits(OPEN)
    assert (plan.server.network_connections, plan.server.address_connections) == (47, 35)
    assert "nftables" in packages.by_role(plan, built=False)["postgresql"]


@pytest.mark.parametrize("listen", [["localhost"], ["127.0.0.1", "::1"]])
def test_port_of_the_loopback_needs_no_firewall(listen: list[str]) -> None:
    plan = limits({**OPEN, "postgresql_listen_addresses": listen})
    assert plan.server.network_connections == 0
    assert "nftables" not in packages.by_role(plan, built=False)["postgresql"]


def test_dev_has_no_limit() -> None:
    assert limits(OPEN, profile="dev").server.network_connections == 0


@pytest.mark.parametrize("probe", [{"network_administration": False}, {"systemd": False}])
def test_host_that_cannot_limit_is_warned_about_and_named_the_way_out(probe: dict[str, Any]) -> None:
    plan = limits({**OPEN, "plan_systemd_required": False}, probe)
    assert plan.server.network_connections == 0
    (warning,) = [each for each in plan.warnings if "postgresql_network_connections" in each]
    assert "CAP_NET_ADMIN" in warning
    assert "set postgresql_listen_addresses: [localhost]" in warning
    assert not any("CAP_NET_ADMIN" in each for each in limits({**OPEN, "postgresql_network_connections": 0}).warnings)


def test_number_that_does_not_fit_is_refused_before_a_run() -> None:
    built = plans.built("prod", {**OPEN, "postgresql_network_connections": 90}, {"addresses": ["192.0.2.1"]})
    assert built.plan is None
    (problem,) = built.problems
    assert problem.startswith("postgresql_network_connections is 90: max_connections 100")


POOLED = {
    **plans.SAMPLE,
    "pgbouncer_listen_addresses": ["192.0.2.1"],
    "pgbouncer_allowed_networks": ["10.0.1.0/24", "samenet"],
}


def test_prod_guards_the_pooler_s_port_also_where_the_server_s_is_closed() -> None:
    plan = limits(POOLED, {"networks": ["10.0.2.0/24"]})
    assert plan.server.network_connections == 0
    assert (plan.pooler.address_clients, plan.pooler.address_rate) == (750, 200)
    assert plan.pooler.networks[2:] == ("10.0.1.0/24", "10.0.2.0/24")
    assert plan.firewall
    assert "nftables" in packages.by_role(plan, built=False)["postgresql"]
    assert limits({**POOLED, "pgbouncer_max_clients": 100}).pooler.address_clients == 75


@pytest.mark.parametrize(
    ("given", "profile"),
    [
        ({"pgbouncer_listen_addresses": ["127.0.0.1"]}, "prod"),
        ({"pgbouncer_address_clients": 0}, "prod"),
        ({}, "dev"),
    ],
)
def test_pooler_of_the_loopback_or_without_a_limit_is_not_guarded(given: dict[str, Any], profile: str) -> None:
    plan = limits({**POOLED, **given}, profile=profile)
    assert plan.pooler.address_clients == 0
    assert not plan.firewall


def test_more_clients_of_one_address_than_the_pooler_takes_are_refused() -> None:
    built = plans.built("prod", {**POOLED, "pgbouncer_address_clients": 1001}, {"addresses": ["192.0.2.1"]})
    assert built.problems == (
        "pgbouncer_address_clients is 1001: expected at most pgbouncer_max_clients, 1000, or -1 for three quarters of "
        "it",
    )


def test_host_that_cannot_guard_the_pooler_is_warned_about() -> None:
    plan = limits(POOLED, {"network_administration": False})
    assert plan.pooler.address_clients == 0
    (warning,) = [each for each in plan.warnings if "pgbouncer_address_clients" in each]
    assert "unfinished logins from one address can take every client of port 6432" in warning
