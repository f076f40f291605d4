"""Real certificate files: each kind of defect is reported with its file, a good certificate has none."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provision.checks import certificates
from provision.checks.certificate import Certificate, Leaf, days_left, due, judge, look
from tests.authority import Authority, Pair

AUTHORITY, STRANGER = Authority(), Authority("a stranger")
NAMES = ("db1", "db1.example.com", "10.0.0.5", "::1")


@pytest.fixture
def leaf(tmp_path: Path) -> Leaf:
    """A good certificate on disk."""
    AUTHORITY.issue(*NAMES, common_name="db1").write(tmp_path, "server")
    (tmp_path / "ca.crt").write_text(AUTHORITY.text)
    return Leaf(tmp_path / "server.crt", tmp_path / "server.key", NAMES, keeper="")


def problems(leaf: Leaf) -> list[str]:
    authority = leaf.certificate.with_name("ca.crt")
    return judge(leaf, authority, look(leaf, authority), time.time())


def replaced(**wanted: object) -> Callable[[Leaf], object]:
    issuer = wanted.pop("issuer", AUTHORITY)
    names = wanted.pop("names", NAMES)
    return lambda leaf: issuer.issue(*names, **wanted).write(leaf.certificate.parent, "server")  # type: ignore[attr-defined, misc]


def encrypt(leaf: Leaf) -> None:
    command = ["openssl", "pkey", "-in", str(leaf.key), "-aes256", "-passout", "pass:secret", "-out", f"{leaf.key}.new"]
    subprocess.run(command, check=True)
    Path(f"{leaf.key}.new").replace(leaf.key)


def test_a_good_certificate_is_read(leaf: Leaf) -> None:
    assert problems(leaf) == []
    seen = look(leaf, leaf.certificate.with_name("ca.crt")).certificate
    assert isinstance(seen, Certificate)
    assert (seen.common_name, seen.names, seen.key_type) == ("db1", NAMES, "ecdsa")
    assert days_left(seen, time.time()) == 396
    assert not due(seen, time.time())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda leaf: leaf.key.chmod(0o644), "server.key: mode 0644 gives other users access to the key"),
        (lambda leaf: leaf.key.chmod(0o660), "server.key: mode 0660; allowed: 0640 or less"),
        (lambda leaf: leaf.key.unlink(), "server.key: cannot be read: No such file or directory"),
        (lambda leaf: leaf.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n"),
         "server.key: contains no private key (PEM)"),
        (encrypt, "server.key: encrypted; expected a key without a passphrase"),
        (lambda leaf: leaf.key.write_text(AUTHORITY.issue().key), "server.crt: does not match the key"),
        (lambda leaf: leaf.certificate.unlink(), "server.crt: cannot be read"),
        (lambda leaf: leaf.certificate.write_text("hello"), "server.crt: contains no certificate (PEM)"),
        (lambda leaf: leaf.certificate.write_bytes(leaf.certificate.read_bytes()[:300]), "contains no certificate"),
        (replaced(begins=-400, ends=-1), "server.crt: expired on"),
        (replaced(begins=1), "server.crt: not valid before"),
        (replaced(names=("db2", *NAMES[1:])), "valid for db2, db1.example.com, 10.0.0.5, ::1, not for db1"),
        (replaced(names=()), "server.crt: no subject alternative name; expected db1, db1.example.com, 10.0.0.5, ::1"),
        (replaced(use="client"), "ca.crt for a server: extended key usage excludes server authentication"),
        (replaced(issuer=STRANGER), "ca.crt for a server: issuer CN=a stranger not found"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").write_text(STRANGER.text),
         "issuer CN=authority of a test not found"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").unlink(), "ca.crt: cannot be read: No such file"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").write_text(""), "ca.crt: contains no certificate (PEM)"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").write_text(leaf.certificate.read_text()),
         "ca.crt: contains a certificate that is not a CA certificate (CA:TRUE is missing)"),
    ],
)  # fmt: skip
def test_each_defect_is_reported_with_its_file(leaf: Leaf, spoil: Callable[[Leaf], object], said: str) -> None:
    spoil(leaf)
    found = problems(leaf)
    assert len(found) == 1, found
    assert said in found[0]


def test_any_authority_of_the_file_is_trusted(leaf: Leaf) -> None:
    leaf.certificate.with_name("ca.crt").write_text(STRANGER.text + AUTHORITY.text)
    assert problems(leaf) == []


def test_doctor_warns_below_a_third_and_reports_defects_as_critical(tmp_path: Path) -> None:
    record = tmp_path / "host.json"
    paths = f'"certificate": "{tmp_path}/server.crt", "key": "{tmp_path}/server.key"'
    row = f'{{{paths}, "purpose": "server", "name": "db1", "keeper": ""}}'
    record.write_text(f'{{"tls": {{"ca": "{tmp_path}/ca.crt", "certificates": [{row}]}}}}')
    (tmp_path / "ca.crt").write_text(AUTHORITY.text)

    def said(pair: Pair) -> list[str]:
        pair.write(tmp_path, "server")
        return [f"{each.severity}: {each.seen}" for each in certificates.examine(record)]

    assert said(AUTHORITY.issue("db1")) == []
    assert said(AUTHORITY.issue("db1", begins=-300, ends=97)) == [f"warning: {tmp_path}/server.crt: 96 days left"]
    (expired,) = said(AUTHORITY.issue("db1", begins=-400, ends=-3))
    assert expired.startswith(f"critical: {tmp_path}/server.crt: expired on")


def test_doctor_finds_nothing_without_a_record(tmp_path: Path) -> None:
    assert certificates.examine(tmp_path / "host.json") == []
    (tmp_path / "host.json").write_text('{"profile": "dev", "tls": {}}')
    assert certificates.examine(tmp_path / "host.json") == []
