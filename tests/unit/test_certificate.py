"""Certificates are judged before a server loads them: each defect has its own message, a good one has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provision.checks.certificate import Certificate, Key, Leaf, Seen, covers, days_left, due, judge

AUTHORITY = Path("/etc/provision/tls/ca.crt")
LEAF = Leaf(Path("/etc/provision/tls/server.crt"), Path("/etc/provision/tls/server.key"), ("db1", "10.0.0.5", "::1"))
DAY = 86400
NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC
GOOD = Certificate("db1", ("db1", "10.0.0.5", "::1"), NOW - 100 * DAY, NOW + 297 * DAY, "PUBLIC", "AB:CD")
KEY = Key("root:ssl-cert", 0o640, "PUBLIC")
SEEN = Seen(NOW + 3000 * DAY, GOOD, KEY)


def test_a_good_certificate_has_no_problems() -> None:
    assert judge(LEAF, AUTHORITY, SEEN, NOW) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (replace(SEEN, key=replace(KEY, mode=0o644)),
         "/etc/provision/tls/server.key: mode 0644 gives other users access to the key; allowed: 0640 or less"),
        (replace(SEEN, key=replace(KEY, mode=0o660)), "server.key: mode 0660; allowed: 0640 or less"),
        (replace(SEEN, key=replace(KEY, keeper="nobody:ssl-cert")),
         "server.key: owner nobody:ssl-cert; expected root:ssl-cert"),
        (replace(SEEN, key=replace(KEY, public_key="OTHER")),
         "server.crt: does not match the key /etc/provision/tls/server.key"),
        (replace(SEEN, key=replace(KEY, public_key="", unreadable="contains no private key (PEM)")),
         "server.key: contains no private key (PEM)"),
        (replace(SEEN, key="No such file or directory"), "server.key: No such file or directory"),
        (replace(SEEN, certificate=replace(GOOD, ends=NOW - DAY)), "server.crt: expired on 2027-01-14 08:00 UTC"),
        (replace(SEEN, certificate=replace(GOOD, ends=NOW)), "server.crt: expired on 2027-01-15 08:00 UTC"),
        (replace(SEEN, certificate=replace(GOOD, begins=NOW + DAY)),
         "server.crt: not valid before 2027-01-16 08:00 UTC; this host's clock says 2027-01-15 08:00 UTC"),
        (replace(SEEN, certificate=replace(GOOD, names=("db2", "10.0.0.5", "::1"))),
         "server.crt: valid for db2, 10.0.0.5, ::1, not for db1"),
        (replace(SEEN, certificate=replace(GOOD, names=())),
         ": no subject alternative name; expected db1, 10.0.0.5, ::1"),
        (replace(SEEN, certificate=replace(GOOD, untrusted="issuer CN=other not found")),
         "server.crt: not issued by /etc/provision/tls/ca.crt for a server: issuer CN=other not found"),
        (replace(SEEN, certificate="contains no certificate (PEM)"), "server.crt: contains no certificate (PEM)"),
        (replace(SEEN, authority="contains no certificate (PEM)"),
         "/etc/provision/tls/ca.crt: contains no certificate (PEM)"),
        (replace(SEEN, certificate=replace(GOOD, intermediates_end=NOW - DAY)),
         "server.crt: an intermediate certificate expired on 2027-01-14 08:00 UTC"),
        (replace(SEEN, certificate=replace(GOOD, weakness="RSA key of 1024 bits; allowed: 2048 or more")),
         "server.crt: RSA key of 1024 bits; allowed: 2048 or more"),
        (replace(SEEN, authority=NOW - 1), "ca.crt: the CA expired on 2027-01-15 07:59 UTC"),
    ],
)  # fmt: skip
def test_each_defect_names_its_file(seen: Seen, said: str) -> None:
    found = judge(LEAF, AUTHORITY, seen, NOW)
    assert len(found) == 1
    assert found[0].endswith(said)


def test_all_defects_are_reported() -> None:
    bad = replace(SEEN, key=replace(KEY, mode=0o604, keeper="x:y"), certificate=replace(GOOD, ends=NOW - 1, names=()))
    assert len(judge(LEAF, AUTHORITY, bad, NOW)) == 4


def test_a_client_certificate_must_have_the_role_as_common_name() -> None:
    leaf = replace(LEAF, names=(), common_name="minion_pooler", purpose="client")
    assert judge(leaf, AUTHORITY, SEEN, NOW) == [
        "/etc/provision/tls/server.crt: common name 'db1'; expected 'minion_pooler'"
    ]


@pytest.mark.parametrize(
    ("names", "wanted", "answer"),
    [
        (("db1.example.com",), "DB1.example.com", True),
        (("*.example.com",), "db1.example.com", True),
        (("*.example.com",), "example.com", False),
        (("*.example.com",), "a.db1.example.com", False),
        (("*",), "db1", False),
        (("::1",), "0:0:0:0:0:0:0:1", True),
        (("10.0.0.5",), "10.0.0.50", False),
        (("*.0.0.5",), "10.0.0.5", False),
        ((), "db1", False),
    ],
)
def test_names_match_as_in_rfc_6125(names: tuple[str, ...], wanted: str, answer: bool) -> None:
    assert covers(names, wanted) is answer


@pytest.mark.parametrize(("left", "answer"), [(396, False), (133, False), (132, True), (1, True), (-5, True)])
def test_is_due_below_a_third_of_its_lifetime(left: int, answer: bool) -> None:
    certificate = replace(GOOD, begins=NOW - (397 - left) * DAY, ends=NOW + left * DAY)
    assert due(certificate, NOW) is answer
    assert days_left(certificate, NOW) == left
