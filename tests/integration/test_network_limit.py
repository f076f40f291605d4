"""Unfinished logins from the network, with the firewall's rules as they are rendered: who still logs in."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from provision.checks import firewall
from provision.controller import inputs
from provision.plan import schema
from provision.quoting import conninfo
from tests import embedded, plans
from tests.integration.test_exhaustion import OPERATORS, logged_in, serving
from tests.networks import SERVER, SERVER_6, Network, network
from tests.templates.test_render import render, template

BODY = b"user\0minion_app\0database\0minion\0\0"
STARTUP = struct.pack("!ii", len(BODY) + 8, 196608) + BODY
PORT = 5432
"""Of a namespace of its own."""
STRANGERS = [f"192.0.2.{n}" for n in range(2, 7)]
EACH = 100
POOLER = {
    "pgbouncer_listen_addresses": [SERVER, "2001:db8::1"],
    "pgbouncer_allowed_networks": ["192.0.2.0/29", "2001:0db8:0:1::2/128"],
    "pgbouncer_max_clients": 40,
    "pgbouncer_address_rate": 50,
}
"""Limits of the pooler's port: 30 clients of one address, 40 of all; 192.0.2.8 and later are strangers."""
LISTENER = """
import asyncio
async def hold(reader, writer):
    while await reader.read(4096):
        pass
    writer.close()
async def main():
    servers = [await asyncio.start_server(hold, host, 6432, backlog=4096) for host in ("0.0.0.0", "::")]
    print("ready", flush=True)
    await asyncio.gather(*(each.serve_forever() for each in servers))
asyncio.run(main())
"""
"""Waits for the client's next message, as a pooler does before the login has ended."""


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


def limit(lan: Network, plan: schema.Plan, folder: Path) -> None:
    """Load the rules of a plan."""
    path = folder / "firewall.nft"
    path.write_text(render(template("postgresql/firewall.nft.j2"), "prod", plan=inputs.published(plan, None)))
    lan.at_server("/usr/sbin/nft", "--file", path)


@pytest.mark.parametrize("major", embedded.MAJORS)
def test_operators_log_in_while_strangers_begin_500_logins_and_tenants_hold_all_they_can(
    major: int, lan: Network
) -> None:
    plan = planned(major)
    assert (plan.server.network_connections, plan.server.address_connections) == (7, 5)
    with serving(major, plan, lan) as (server, port), ExitStack() as stack:
        limit(lan, plan, server.socket)
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
        limit(lan, plan, server.socket)
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
        limit(lan, plan, server.socket)
        limit(lan, plan, server.socket)  # the file can be loaded again
        both = ["2001:db8:0:1::2", "2001:db8:0:1::3"]
        with lan.connected(both, port, 20, STARTUP, SERVER_6) as counts:
            assert sum(counts.values()) == 5
            with lan.connected(["2001:db8:0:2::2"], port, 20, STARTUP, SERVER_6) as other:
                assert other == {"2001:db8:0:2::2": 2}
            code = "import socket; print(len([socket.create_connection(('::1', 5432)) for _ in range(30)]))"
            assert lan.at_server("python3", "-c", code) == "30\n"


def test_the_doctor_compares_the_kernel_with_the_plan(lan: Network, tmp_path: Path) -> None:
    plan = planned(17, **POOLER)
    limit(lan, plan, tmp_path)
    listing = lan.at_server("/usr/sbin/nft", "--json", "list", "table", *firewall.TABLE)
    assert firewall.counts(listing) == [5, 5, 7]
    assert firewall.counts(listing, "clients") == [50, 30, 50, 30, 30, 30, 40]
    assert firewall.entries(listing) == {"postgresql": 5432, "clients": 6432}
    assert firewall.networks(listing) == ["192.0.2.0/29", "2001:db8:0:1::2/128"] == firewall.admitting(plan)
    assert firewall.expected(plan) == {
        "postgresql": (5432, [5, 5, 7]),
        "clients": (6432, [50, 30, 50, 30, 30, 30, 40]),
    }


@contextmanager
def listening(lan: Network) -> Iterator[None]:
    """Listen at the pooler's port of the server's namespace."""
    command = ["nsenter", f"--net={lan.server}", sys.executable, "-c", LISTENER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            listener.kill()


@pytest.fixture
def pooler(lan: Network, tmp_path: Path) -> Iterator[schema.Plan]:
    """The rules of a host whose server's own port is closed to the network, and a listener at the pooler's."""
    plan = planned(17, postgresql_listen_addresses=["localhost"], **POOLER)
    assert plan.server.network_connections == 0
    limit(lan, plan, tmp_path)
    with listening(lan):
        yield plan


def test_one_address_floods_the_pooler_and_others_still_reach_it(lan: Network, pooler: schema.Plan) -> None:
    assert pooler.pooler.address_clients == 30
    with lan.connected(["192.0.2.2"], 6432, 45, b"") as counts:
        assert counts == {"192.0.2.2": 30}
        with lan.connected(["192.0.2.3"], 6432, 20, STARTUP) as others:
            assert others == {"192.0.2.3": 10}  # all addresses together: as many as the pooler takes
            local = "import socket; print(len([socket.create_connection(('127.0.0.1', 6432)) for _ in range(50)]))"
            assert lan.at_server("python3", "-c", local) == "50\n"
    with lan.connected(["192.0.2.4"], 6432, 30, b"") as later:
        assert later == {"192.0.2.4": 30}


def test_strangers_of_other_networks_never_reach_the_pooler(lan: Network, pooler: schema.Plan) -> None:
    del pooler
    with lan.connected(["192.0.2.8", "192.0.2.9"], 6432, 5, STARTUP) as counts:
        assert sum(counts.values()) == 0
    with lan.connected(["2001:db8:0:1::3", "2001:db8:0:2::2"], 6432, 5, STARTUP, SERVER_6) as counts:
        assert sum(counts.values()) == 0
    with lan.connected(["2001:db8:0:1::2"], 6432, 5, STARTUP, SERVER_6) as counts:
        assert sum(counts.values()) == 5


def test_new_connections_of_one_address_are_slowed_after_a_burst(lan: Network, pooler: schema.Plan) -> None:
    del pooler
    code = (
        "import socket, time\nbegun = time.monotonic()\n"
        f"for _ in range(230): socket.create_connection(({SERVER!r}, 6432), 10, ('192.0.2.5', 0)).close()\n"
        "print(time.monotonic() - begun)"
    )
    done = lan.at_clients(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    # 200 connections after the burst of 30, at 50 per second: a dropped one is tried again by the kernel, and succeeds.
    assert float(done.stdout) > 2


def test_defaults_admit_500_clients_of_one_address_at_once(lan: Network, tmp_path: Path) -> None:
    more = {"pgbouncer_listen_addresses": [SERVER], "pgbouncer_allowed_networks": ["192.0.2.0/24"]}
    plan = planned(17, postgresql_listen_addresses=["localhost"], **more)
    assert (plan.pooler.address_clients, plan.pooler.address_rate) == (750, 200)
    limit(lan, plan, tmp_path)
    with listening(lan), lan.connected(["192.0.2.2"], 6432, 500, STARTUP) as counts:
        assert counts == {"192.0.2.2": 500}
