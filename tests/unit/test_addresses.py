"""Addresses as each target reads them, and where a service is reached."""

from __future__ import annotations

import pytest

from provision import addresses

OWN = ["10.0.0.5", "fd00::5"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("db1", "db1:5432"), ("10.0.0.5", "10.0.0.5:5432"), ("::1", "[::1]:5432"), ("fd00::5", "[fd00::5]:5432")],
)
def test_endpoint_has_brackets_for_ipv6_alone(host: str, expected: str) -> None:
    assert addresses.endpoint(host, 5432) == expected


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [("store", 22, "store"), ("store", 2222, "[store]:2222"), ("fd00::9", 22, "fd00::9"),
     ("fd00::9", 2222, "[fd00::9]:2222")],
)  # fmt: skip
def test_known_hosts_names_a_port_other_than_22(host: str, port: int, expected: str) -> None:
    assert addresses.known_host(host, port) == expected


@pytest.mark.parametrize(
    ("listen", "resolved", "expected"),
    [
        (["localhost"], {}, "127.0.0.1"),
        (["localhost"], {"localhost": ["::1"]}, "::1"),
        (["localhost", "10.0.0.5"], {"localhost": ["::1"]}, "::1"),
        (["db1"], {"db1": ["fd00::5"]}, "fd00::5"),
        (["::", "10.0.0.5"], {}, "::1"),
        (["FD00:0::5"], {}, "fd00::5"),
    ],
)
def test_a_service_is_reached_where_the_host_resolves_its_names(
    listen: list[str], resolved: dict[str, list[str]], expected: str
) -> None:
    assert addresses.reached(listen, resolved) == expected


@pytest.mark.parametrize(
    ("listen", "client", "expected"),
    [
        (["localhost"], "10.0.0.5", "127.0.0.1"),
        (["127.0.0.1"], "db1.example.com", "127.0.0.1"),
        (["::1"], "10.0.0.5", "::1"),
        (["127.0.0.1", "::1"], "10.0.0.5", "127.0.0.1"),
        (["*"], "fd00::5", "fd00::5"),
        (["localhost", "10.0.0.5"], "10.0.0.5", "10.0.0.5"),
        (["localhost", "fd00::5"], "10.0.0.5", "fd00::5"),  # nothing listens on the address of the inventory
        (["::"], "10.0.0.5", "fd00::5"),
        (["0.0.0.0"], "fd00::5", "10.0.0.5"),  # noqa: S104 - compared, not bound
        (["10.0.0.5"], "203.0.113.9", "203.0.113.9"),  # NAT: not an address of the host
        (["10.0.0.5"], "db1.example.com", "db1.example.com"),  # certificates name it
    ],
)
def test_clients_get_an_address_on_which_the_service_listens(listen: list[str], client: str, expected: str) -> None:
    assert addresses.advertised(listen, client, OWN) == expected


@pytest.mark.parametrize("text", ["[::1]", "::1:", "10.0.0.0/8", "fe80::1%eth0", "localhost", "", "10.0.0.5:22"])
def test_parsed_is_for_addresses_alone(text: str) -> None:
    assert addresses.parsed(text) is None
