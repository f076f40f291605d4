"""Judgement of listen addresses, networks, names of certificates, stanzas and the backup host, before any change."""

from __future__ import annotations

from typing import Any

import pytest

from provision.plan import dns, network
from provision.plan.context import Peer
from tests import plans

REMOTE: dict[str, Any] = {
    "backup_repository_host": "192.0.2.7",
    "backup_repository_inventory_name": "backup1",
    "postgresql_version": 17,
    "postgresql_repository": "distribution",
    "pgvector_install_method": "package",
}
HOST: dict[str, Any] = {
    "addresses": ["10.0.0.5", "fd00::5"],
    "listen": {
        "localhost": {"127.0.0.1": True, "::1": False},
        "10.0.0.5": {"10.0.0.5": True},
        "10.0.0.6": {"10.0.0.6": False},
        "db1": {"127.0.1.1": True},
        "db2": {"10.0.0.6": False},
        "gone": {},
    },
}


def reported(given: dict[str, Any], probe: dict[str, Any] | None = None, **context: Any) -> list[str]:
    return list(plans.built("prod", {**REMOTE, **given}, probe, **context).problems)


@pytest.mark.parametrize("text", ["*", "0.0.0.0", "::", "::1", "127.0.0.1", "localhost", "10.0.0.5", "db1"])  # noqa: S104
def test_accepts_listen_addresses_of_the_host(text: str) -> None:
    assert network.listen_problems("a", [text], HOST) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.6", "this host does not have 10.0.0.6; it has 10.0.0.5, fd00::5, 127.0.0.1, ::1"),
        ("db2", "this host does not have 10.0.0.6; it has 10.0.0.5, fd00::5, 127.0.0.1, ::1"),
        ("gone", "this host does not resolve that name; write one of its addresses"),
        ("127.0.0.1:5432", "expected only an address of this host, such as 127.0.0.1; the port is postgresql_port"),
        ("[::1]:5432", "expected only an address of this host, such as ::1; the port is postgresql_port"),
        ("[fd00::5]", "expected only an address of this host, such as fd00::5"),
        ("0.0.0.0/0", "expected only an address of this host, such as 0.0.0.0"),
        ("fe80::1%eth0", "expected only an address of this host, such as fe80::1"),
        ("10.0.0.5,127.0.0.1", "expected one address of this host, localhost, or a name that this host resolves"),
        ("10.0.0", "expected one address of this host, localhost, or a name that this host resolves"),
        ("https://db1", "expected one address of this host, localhost, or a name that this host resolves"),
        ("", "expected one address of this host, localhost, or a name that this host resolves"),
    ],
)
def test_refuses_what_a_service_cannot_listen_on(text: str, expected: str) -> None:
    (reported,) = network.listen_problems("a", [text], HOST, "postgresql_port")
    moving = (
        "; for an address that moves between hosts, set net.ipv4.ip_nonlocal_bind and net.ipv6.ip_nonlocal_bind to 1"
    )
    assert reported.removesuffix(moving) == f"a has {text!r}: {expected}"
    assert reported.endswith(moving) == ("does not have" in expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "'': expected a regular expression, such as ^root$; an empty one matches every name"),
        ("(", "'(': expected a regular expression, such as ^root$; missing ), unterminated subpattern"),
        ("*x", "nothing to repeat"),
        (r"^\mroot\M$", ""),  # escapes of PostgreSQL's own
        ("^[[:alpha:]]+$", ""),
    ],
)
def test_pattern_of_local_users_is_one(text: str, expected: str) -> None:
    reported = plans.built("prod", {**plans.SAMPLE, "postgresql_local_users": text}).problems
    assert len(reported) == bool(expected), reported
    assert expected in "".join(reported)


def test_form_alone_is_judged_where_no_host_was_probed() -> None:
    assert network.listen_problems("a", ["10.0.0.6", "db2"], {}) == []
    assert len(network.listen_problems("a", ["10.0.0.6:1"], {})) == 1


def test_notices_of_addresses_that_say_more_than_they_do() -> None:
    given = {"postgresql_listen_addresses": ["*", "10.0.0.5", "db1"], "pgbouncer_listen_addresses": ["::1", "0::1"]}
    found = plans.built("prod", {**REMOTE, **given}, HOST)
    assert [text for text in found.notices if "listen_addresses" in text] == [
        "postgresql_listen_addresses: * covers 10.0.0.5; remove one of them",
        "postgresql_listen_addresses: db1 is 127.0.1.1 on this host, an address that other hosts cannot reach; "
        "list one of the host's own",
        "pgbouncer_listen_addresses has 0::1 more than once; remove the duplicates",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5/8", "bits of the host part are set; write 10.0.0.0/8, or 10.0.0.5/32 for one address"),
        ("fd00::5/64", "bits of the host part are set; write fd00::/64, or fd00::5/128 for one address"),
        ("fd00::5", "write fd00::5/128 for one address"),
        ("10.0.0.0/255.0.0.0", "write 10.0.0.0/8"),
        ("[fd00::]/8", "write fd00::/8"),
        (" 10.0.0.0/8", "write 10.0.0.0/8"),
        ("db.example.org", "write 10.0.0.5/32 for one address, 10.0.0.0/24, samenet or samehost"),
        ("fe80::%eth0/64", "write 10.0.0.5/32 for one address, 10.0.0.0/24, samenet or samehost"),
    ],
)
def test_refuses_networks_that_pg_hba_would_read_otherwise(text: str, expected: str) -> None:
    assert reported({"postgresql_allowed_networks": [text]})[0] == (
        f"postgresql_allowed_networks has {text!r}: expected a network; {expected}"
    )
    rule = {"users": ["minion"], "from": [text], "method": "scram-sha-256"}
    assert reported({"postgresql_extra_rules": [rule]}) == [
        f"postgresql_extra_rules, rule 1: {text!r}: not a network; {expected}"
    ]


@pytest.mark.parametrize("networks", [["0.0.0.0/0"], ["::/0"], ["0.0.0.0/1"]])
def test_warns_of_networks_that_are_all_addresses(networks: list[str]) -> None:
    found = plans.plan("prod", {**REMOTE, "postgresql_allowed_networks": networks}).warnings
    assert f"postgresql_allowed_networks has {networks[0]}, which lets any address try passwords: list only the " in (
        "".join(found)
    )
    narrow = plans.plan("prod", {**REMOTE, "postgresql_allowed_networks": ["10.0.0.0/8"]}).warnings
    assert not any("may try passwords" in text for text in narrow)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datenbank.münchen.de", "datenbank.xn--mnchen-3ya.de"),
        ("Datenbank.MÜNCHEN.de", "datenbank.xn--mnchen-3ya.de"),
        ("*.münchen.de", "*.xn--mnchen-3ya.de"),
        ("straße.de", "xn--strae-oqa.de"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
        ("*.example.org", "*.example.org"),
        ("DB.Example.org.", "db.example.org"),
        ("db_1", "db_1"),
        ("FD00:0::5", "fd00::5"),
    ],
)
def test_names_of_certificates_are_a_labels(text: str, expected: str) -> None:
    assert dns.certificate_name(text) == expected
    assert expected in plans.plan("prod", {**REMOTE, "tls_extra_names": [text]}).tls.certificate("server").names


def test_names_that_are_equal_after_conversion_are_in_the_certificate_once() -> None:
    names = ["münchen.de", "xn--mnchen-3ya.de", "MÜNCHEN.de.", "db1"]
    found = plans.plan("prod", {**REMOTE, "tls_extra_names": names}, address="münchen.de").tls
    assert found.certificate("server").names == ("xn--mnchen-3ya.de", "db1", "localhost", "127.0.0.1", "::1")
    assert found.name == "xn--mnchen-3ya.de"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://db.example.org/x", "tls_extra_names has a URL; write db.example.org;"),
        ("name:5432", "tls_extra_names has 'name:5432': more than a host name; write name;"),
        ("10.0.0.5/24", "'10.0.0.5/24': an address with a prefix length; write 10.0.0.5;"),
        ("[fd00::1]", "'[fd00::1]': an address in brackets; write fd00::1;"),
        ("fe80::1%eth0", "'fe80::1%eth0': an address with a zone; write fe80::1;"),
        ("*", "'*': a wildcard needs at least two labels after it, as in *.example.com;"),
        ("db.*.org", "'db.*.org': '*' is not a label of a DNS name;"),
        ("a" * 64 + ".de", "a label has 64 characters; at most 63 are allowed;"),
        ("ü" * 60 + ".de", "not an internationalized name (IDNA 2008): Label too long;"),
        ("256.1.1.1", "neither an IP address nor a DNS name (its last label is a number);"),
        ("a..b", "'a..b': '' is not a label of a DNS name;"),
        ("db one", "'db one': contains white space;"),
    ],
)
def test_refuses_names_that_a_certificate_cannot_have(text: str, expected: str) -> None:
    (found,) = reported({"tls_extra_names": [text]})
    assert expected in found


def test_password_of_a_url_among_the_names_is_not_shown() -> None:
    (found,) = reported({"tls_extra_names": ["postgresql://app:S3cret@db.example.org/x"]})
    assert "S3cret" not in found
    assert "write db.example.org" in found


HERE = ("host", "192.0.2.7", "/var/lib/pgbackrest")


def test_hosts_that_share_a_repository_need_stanzas_of_their_own() -> None:
    peers = (Peer("pg1.us", "pg1", frozenset({HERE})), Peer("pg10.us", "pg10", frozenset({HERE})))
    assert reported({"backup_stanza": "pg1"}, name="pg1.eu", peers=peers) == [
        "backup_stanza is 'pg1' on pg1.eu and on pg1.us, which share a repository: set backup_stanza to another name "
        "on the host that has no backups yet"
    ]
    assert reported({"backup_stanza": "pg2"}, name="pg1.eu", peers=peers) == []
    elsewhere = (Peer("pg1.us", "pg1", frozenset({("host", "192.0.2.8", "/var/lib/pgbackrest")})),)
    assert reported({"backup_stanza": "pg1"}, name="pg1.eu", peers=elsewhere) == []


def test_hosts_that_share_the_second_repository_need_stanzas_of_their_own() -> None:
    s3 = {"bucket": "copies", "endpoint": "https://S3.example.com", "region": "r", "key": "k", "key_secret": "s"}
    shared = ("s3", "s3.example.com", "copies", "/pgbackrest")
    other = ("host", "192.0.2.8", "/var/lib/pgbackrest")
    (found,) = reported(
        {"backup_stanza": "pg1", "backup_second_s3": s3}, name="pg1.eu",
        peers=(Peer("pg1.us", "pg1", frozenset({other, shared})),),
    )  # fmt: skip
    assert found.startswith("backup_stanza is 'pg1' on pg1.eu and on pg1.us, which share a repository: ")


@pytest.mark.parametrize("stanza", ["global", "all", "-a", "a b", "fd00::5", ""])
def test_refuses_stanzas_that_pgbackrest_reads_otherwise(stanza: str) -> None:
    (found,) = reported({"backup_stanza": stanza})
    assert found.startswith(f"backup_stanza is {stanza!r}: expected letters, digits, _ . and -")


def test_changed_stanza_is_noticed_because_its_backups_are_not_continued() -> None:
    probe = {"applied": {"backup": {"stanza": "pg1", "port": "5432"}}}
    found = plans.built("prod", {**REMOTE, "backup_stanza": "db1"}, probe)
    assert (
        "backup_stanza changes from pg1 to db1: the backups of pg1 stay in the repository, and a new series begins"
        in ("".join(found.notices))
    )
    same = plans.built("prod", {**REMOTE, "backup_stanza": "pg1"}, probe).notices
    assert not any("backup_stanza" in text for text in same)


@pytest.mark.parametrize("port", ["2222", 2222])
@pytest.mark.parametrize("name", ["ansible_port", "ansible_ssh_port"])
def test_port_of_the_backup_host_is_the_one_that_ansible_uses(name: str, port: Any) -> None:
    given = {**plans.OF_ANSIBLE["groups"], "backup": ["backup1"]}
    hosts = {"backup1": {"ansible_host": "192.0.2.7", name: port}}
    found = plans.plan("prod", {"groups": given, "hostvars": hosts, **REMOTE}).backup.repository
    assert (found.port, found.known_host) == (2222, "[192.0.2.7]:2222")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"backup_repository_port": 0}, "backup_repository_port is 0: expected 1 to 65535"),
        ({"backup_repository_port": 70000}, "backup_repository_port is 70000: expected 1 to 65535"),
        (
            {"backup_repository_host": "root@192.0.2.7"},
            "backup_repository_host is 'root@192.0.2.7': expected the address",
        ),
        (
            {"backup_repository_host": "[fd00::9]"},
            "backup_repository_host is '[fd00::9]': expected the address or name",
        ),
        ({"backup_repository_host": "192.0.2.300"}, "backup_repository_host is '192.0.2.300': expected the address"),
        ({"backup_repository_host": "192.0.2.7:2222"}, "without user, brackets or port (backup_repository_port)"),
    ],
)
def test_refuses_a_backup_host_that_ssh_would_not_find(given: dict[str, Any], expected: str) -> None:
    (found,) = reported(given)
    assert expected in found


def test_backup_host_must_answer_unless_the_run_leaves_backups_alone() -> None:
    probe = {"repository": {"banner": "", "problem": "Connection refused"}}
    (found,) = reported({"backup_repository_port": 2222}, probe)
    assert found.startswith(
        "backup_repository_host: no SSH server answers this host at 192.0.2.7:2222 (Connection refused); open "
    )
    assert reported({}, probe, selected=frozenset({"postgresql", "tls"})) == []
    assert reported({}, {"repository": {"banner": "SSH-2.0-OpenSSH_10.0", "problem": ""}}) == []


def test_second_backup_host_is_reported_as_unused() -> None:
    groups = {"all": ["db1", "backup1", "backup2"], "database": ["db1"], "backup": ["backup1", "backup2"]}
    assert plans.built("prod", REMOTE, groups=groups).notices[-1] == (
        "the group backup has 2 hosts: this host backs up to backup1 (backup_repository_inventory_name), not to backup2"
    )
