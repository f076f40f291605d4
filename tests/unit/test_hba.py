"""Access rules come in one order, which is the one in which the server reads them."""

from __future__ import annotations

from typing import Any

import pytest

from provision.plan.hba import peer_users, problems, rules

SOCKET = [{"role": "minion", "database": "minion"}]
POOLER = [{"role": "minion_pooler", "from": ["127.0.0.1/32", "::1/128"]}]


def lines(**wanted: Any) -> list[str]:
    return [" ".join(str(rule).split()) for rule in rules(**wanted)]


def test_with_tls_remote_logins_require_it() -> None:
    extra = [
        {
            "users": ["reporter"],
            "databases": ["minion", "b"],
            "from": ["10.0.2.0/24"],
            "method": "cert",
            "map": "m",
        },
        {"users": ["all"], "from": ["10.0.1.13/32"], "method": "reject"},
        {"users": ["minion_readonly"], "method": "peer", "map": "m"},
    ]
    assert lines(
        tls=True, networks=["10.0.1.0/24"], socket_logins=SOCKET, certificate_logins=POOLER, extra=extra
    ) == [
        "local all postgres peer",
        "local minion minion peer map=minion",
        "local all minion_readonly peer map=m",
        "local all all scram-sha-256",
        "host all postgres all reject",
        "hostssl all minion_pooler 127.0.0.1/32 cert",
        "hostssl all minion_pooler ::1/128 cert",
        "host all minion_pooler all reject",
        "hostssl minion,b reporter 10.0.2.0/24 cert map=m",
        "host all all 10.0.1.13/32 reject",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host all all ::1/128 scram-sha-256",
        "hostnossl all all all reject",
        "hostssl all all 10.0.1.0/24 scram-sha-256",
    ]  # fmt: skip


def test_without_tls_no_login_requires_it() -> None:
    assert lines(tls=False, networks=["samenet"], socket_logins=SOCKET, certificate_logins=POOLER) == [
        "local all postgres peer",
        "local minion minion peer map=minion",
        "local all all scram-sha-256",
        "host all postgres all reject",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host all all ::1/128 scram-sha-256",
        "host all all samenet scram-sha-256",
    ]


def test_no_network_means_this_host_only() -> None:
    assert [line for line in lines(tls=True, networks=[]) if line.startswith("hostssl")] == []


@pytest.mark.parametrize(
    ("rule", "tls", "said"),
    [
        ({"users": ['a"b'], "method": "reject"}, True, """'a"b' is not the name of a role or database"""),
        ({"users": [], "method": "reject"}, True, "users is missing"),
        ({"users": ["a"], "databases": ["x,y"], "method": "peer"}, True, "'x,y' is not the name of a role or database"),
        ({"users": ["a"], "from": ["10.0.0.5"], "method": "reject"}, True, "'10.0.0.5': not a network"),
        ({"users": ["a"], "from": ["10.0.0.5/8"], "method": "reject"}, True, "'10.0.0.5/8': not a network"),
        ({"users": ["a"], "from": ["10.0.0.0/8"], "method": "trust"}, True, "method 'trust': allowed are scram"),
        ({"users": ["a"], "from": ["10.0.0.0/8"], "method": "md5"}, True, "method 'md5': allowed are scram-sha-256"),
        ({"users": ["a"], "from": ["10.0.0.0/8"], "method": "cert"}, False, "cert needs TLS"),
        ({"users": ["a"], "method": "cert"}, True, "cert needs TLS (tls_enabled) and from"),
        ({"users": ["a"], "from": ["10.0.0.0/8"], "method": "peer"}, True, "peer works over the socket only"),
        ({"users": ["postgres"], "from": ["10.0.0.0/8"], "method": "cert"}, True,
         "the superuser may connect over the socket only"),
        ({"users": ["a"], "from": ["10.0.0.0/8"], "method": "reject", "map": "m"}, True, "map is for cert and peer"),
        ({"users": ["a"], "method": "peer", "map": "m x"}, True, "map is for cert and peer"),
    ],
)  # fmt: skip
def test_refuses_what_lets_in_strangers_or_cannot_be_meant(rule: dict[str, Any], tls: bool, said: str) -> None:
    good = {"users": ["minion"], "method": "peer"}
    found = problems([good, rule], tls=tls)
    assert len(found) == 1
    assert found[0].startswith("postgresql_extra_rules, rule 2: ")
    assert said in found[0]


@pytest.mark.parametrize(
    "rule",
    [
        {"users": ["minion_readonly", "+readers"], "databases": ["minion"], "from": ["10.0.2.0/24"], "method": "cert"},
        {"users": ["/^app_"], "from": ["samenet", "fd00::/8"], "method": "scram-sha-256"},
        {"users": ["all"], "from": ["0.0.0.0/0"], "method": "reject"},
    ],
)
def test_lets_pass_what_can_be_meant(rule: dict[str, Any]) -> None:
    assert problems([rule], tls=True) == []


def test_a_pattern_needs_a_server_that_reads_it() -> None:
    rule: dict[str, Any] = {"users": ["/^app_"], "method": "reject"}
    assert problems([rule], tls=True, major=16) == []
    assert problems([rule], tls=True, major=15) == [
        "postgresql_extra_rules, rule 1: '/^app_': patterns need PostgreSQL 16, not 15: list the names instead"
    ]


def test_rules_refer_to_names_that_only_a_new_role_or_database_cannot_have() -> None:
    rule = {"users": ["+pg_monitor", "postgres"], "databases": ["template1", "sameuser"], "method": "peer"}
    assert problems([rule], tls=True) == []


@pytest.mark.parametrize(
    ("pattern", "extra", "expected"),
    [
        ("^(root|postgres)$", [], ("root", "postgres")),
        ("^deploy$", [], ("root", "postgres", "deploy")),
        (".*", [], ()),
        ("^app_.*$", [], ()),
        (
            "^root$",
            [{"users": ["minion_readonly"], "method": "peer", "map": "reports"}],
            ("root", "postgres", "reporter"),
        ),
        ("^root$", [{"users": ["minion_readonly"], "method": "peer", "map": "wide"}], ()),
        ("^root$", [{"users": ["analyst"], "method": "peer"}], ("root", "postgres", "analyst")),
        ("^root$", [{"users": ["all"], "method": "peer"}], ()),
        ("^root$", [{"users": ["all"], "from": ["10.0.0.0/8"], "method": "reject"}], ("root", "postgres")),
    ],
)
def test_users_with_a_peer_login_are_listed_unless_a_pattern_names_them(
    pattern: str, extra: list[dict[str, Any]], expected: tuple[str, ...]
) -> None:
    maps = [
        {"map": "reports", "system": "reporter", "role": "minion_readonly"},
        {"map": "wide", "system": "/^r", "role": "minion_readonly"},
    ]
    assert peer_users(pattern, extra, maps) == expected
