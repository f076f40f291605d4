"""Unfinished logins from the network, with the firewall's rules as they are rendered: who still logs in."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from provision.checks import firewall
from provision.controller import inputs
from provision.plan import schema
from provision.quoting import conninfo
from tests import embedded, plans
from tests.embedded import Server
from tests.integration.test_exhaustion import OPERATORS, logged_in, serving
from tests.networks import SERVER, SERVER_6, Network, network
from tests.templates.test_render import render, template

BODY = b"user\0minion_app\0database\0minion\0\0"
STARTUP = struct.pack("!ii", len(BODY) + 8, 196608) + BODY
PORT = 5432
"""Of a namespace of its own."""
STRANGERS = [f"192.0.2.{n}" for n in range(2, 7)]
EACH = 100


def planned(major: int, **more: object) -> schema.Plan:
    given = {
        **plans.SAMPLE,
        "postgresql_version": major,
        "postgresql_repository": "pgdg",
        "postgresql_listen_addresses": [SERVER],
        **more,
    }
    return plans.plan("prod", given, probe={"memory_mb": 2048, "cpus": 2, "addresses": [SERVER]})


@pytest.fixture
def lan() -> Iterator[Network]:
    assert os.geteuid() == 0, "run these tests as root"
    with network(f"n{os.getpid() % 10**7}") as made:
        yield made


def limit(lan: Network, plan: schema.Plan, server: Server) -> None:
    """Load the rules of a plan."""
    path = server.socket / "firewall.nft"
    path.write_text(render(template("postgresql/firewall.nft.j2"), "prod", plan=inputs.published(plan, None)))
    lan.at_server("/usr/sbin/nft", "--file", path)


@pytest.mark.parametrize("major", embedded.VERSIONS)
def test_operators_log_in_while_strangers_begin_500_logins_and_tenants_hold_all_they_can(
    major: int, lan: Network
) -> None:
    plan = planned(major)
    assert (plan.server.network_connections, plan.server.address_connections) == (7, 5)
    with serving(major, plan, lan) as (server, port), ExitStack() as stack:
        limit(lan, plan, server)
        # The application holds its whole limit, its pool and direct connections; the other pools are full too.
        password = plans.SECRETS["database_credentials"]["minion_app"]["password"]
        limits = {role.name: role.connection_limit for role in plan.access.roles}
        direct = limits["minion_app"] - plan.pooler.pools["minion_app"]
        where = conninfo({"host": SERVER, "port": port, "user": "minion_app", "dbname": "minion", "password": password})
        assert stack.enter_context(lan.logged_in(where, direct)) == direct
        for role, size in plan.pooler.pools.items():
            for _ in range(size):
                stack.enter_context(logged_in(server, port, role))
        with pytest.raises(psycopg.OperationalError, match='too many connections for role "minion_app"'):
            logged_in(server, port, "minion_app")
        counts = stack.enter_context(lan.connected(STRANGERS, port, EACH, STARTUP))
        assert sum(counts.values()) == plan.server.network_connections - direct
        for role in OPERATORS:
            for _ in range(2):
                stack.enter_context(logged_in(server, port, role))
        for _ in range(limits["minion_pooler"]):
            stack.enter_context(logged_in(server, port, "minion_pooler"))


@pytest.mark.parametrize("major", [14, 18])
def test_without_the_limit_the_same_strangers_shut_out_the_superuser(major: int, lan: Network) -> None:
    with serving(major, planned(major), lan) as (server, port), lan.connected(STRANGERS, port, EACH, STARTUP) as counts:
        assert sum(counts.values()) > 60
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            logged_in(server, port, "postgres")


def test_silent_connections_of_one_address_leave_room_for_others_and_end(lan: Network) -> None:
    plan = planned(17)
    with serving(17, plan, lan) as (server, port):
        limit(lan, plan, server)
        with lan.connected(["192.0.2.2"], port, EACH, b"") as counts:
            assert counts == {"192.0.2.2": 5}
            with lan.connected(["192.0.2.3"], port, 2, STARTUP) as others:
                assert others == {"192.0.2.3": 2}
        # Closed connections no longer count.
        with lan.connected(["192.0.2.4"], port, 5, STARTUP) as later:
            assert later == {"192.0.2.4": 5}


def test_addresses_of_one_ipv6_network_count_together_and_the_loopback_does_not(lan: Network) -> None:
    plan = planned(17, postgresql_listen_addresses=["::"])
    with serving(17, plan, lan, "::") as (server, port):
        limit(lan, plan, server)
        limit(lan, plan, server)  # the file can be loaded again
        both = ["2001:db8:0:1::2", "2001:db8:0:1::3"]
        with lan.connected(both, port, 20, STARTUP, SERVER_6) as counts:
            assert sum(counts.values()) == 5
            with lan.connected(["2001:db8:0:2::2"], port, 20, STARTUP, SERVER_6) as other:
                assert other == {"2001:db8:0:2::2": 2}
            code = "import socket; print(len([socket.create_connection(('::1', 5432)) for _ in range(30)]))"
            assert lan.at_server("python3", "-c", code) == "30\n"


def test_the_doctor_compares_the_kernel_with_the_plan(lan: Network) -> None:
    plan = planned(17)
    with embedded.cluster(17) as server:
        limit(lan, plan, server)
    listing = lan.at_server("/usr/sbin/nft", "--json", "list", "table", *firewall.TABLE)
    assert firewall.counts(listing) == [5, 5, 7]
    assert firewall.ports(listing) == [5432]
