"""Real certificates, read by the real openssl: each kind that no server should take is named, a good one is not."""

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
    """A good certificate on disk, and what is wanted of it."""
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


def test_a_good_one_is_read_whole(leaf: Leaf) -> None:
    assert problems(leaf) == []
    seen = look(leaf, leaf.certificate.with_name("ca.crt")).certificate
    assert isinstance(seen, Certificate)
    assert (seen.common_name, seen.names, seen.key_type) == ("db1", NAMES, "ecdsa")
    assert days_left(seen, time.time()) == 396
    assert not due(seen, time.time())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda leaf: leaf.key.chmod(0o644), "server.key: mode 0644 lets others at the key"),
        (lambda leaf: leaf.key.chmod(0o660), "server.key: mode 0660: allowed is 0640 or less"),
        (lambda leaf: leaf.key.unlink(), "server.key: No such file or directory"),
        (lambda leaf: leaf.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n"), "server.key: holds no key that"),
        (encrypt, "server.key: holds no key that can be read without a passphrase"),
        (lambda leaf: leaf.key.write_text(AUTHORITY.issue().key), "server.crt: does not belong to the key"),
        (lambda leaf: leaf.certificate.unlink(), "server.crt: cannot be read"),
        (lambda leaf: leaf.certificate.write_text("hello"), "server.crt: holds no certificate (PEM)"),
        (lambda leaf: leaf.certificate.write_bytes(leaf.certificate.read_bytes()[:300]), "holds no certificate"),
        (replaced(begins=-400, ends=-1), "server.crt: expired on"),
        (replaced(begins=1), "server.crt: not valid before"),
        (replaced(names=("db2", *NAMES[1:])), "is for db2, db1.example.com, 10.0.0.5, ::1, and not for db1"),
        (replaced(names=()), "server.crt: is for no name at all, and not for db1, db1.example.com, 10.0.0.5, ::1"),
        (replaced(use="client"), "ca.crt for a server: unsuitable certificate purpose"),
        (replaced(issuer=STRANGER), "ca.crt for a server: unable to get local issuer certificate"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").write_text(STRANGER.text), "unable to get local issuer"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").unlink(), "ca.crt: cannot be read: there is no certificate"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").write_text(""), "ca.crt: holds no certificate of"),
        (lambda leaf: leaf.certificate.with_name("ca.crt").write_text(leaf.certificate.read_text()),
         "ca.crt: holds a certificate that is no authority's (CA:TRUE is missing)"),
    ],
)  # fmt: skip
def test_each_kind_is_named_with_its_file_and_reason(leaf: Leaf, spoil: Callable[[Leaf], object], said: str) -> None:
    spoil(leaf)
    found = problems(leaf)
    assert len(found) == 1, found
    assert said in found[0]


def test_an_authority_beside_another_is_believed(leaf: Leaf) -> None:
    leaf.certificate.with_name("ca.crt").write_text(STRANGER.text + AUTHORITY.text)
    assert problems(leaf) == []


def test_doctor_warns_at_a_third_and_is_alarmed_by_what_is_bad(tmp_path: Path) -> None:
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


def test_a_machine_that_is_no_host_of_ours_has_nothing_to_be_found(tmp_path: Path) -> None:
    assert certificates.examine(tmp_path / "host.json") == []
    (tmp_path / "host.json").write_text('{"profile": "dev", "tls": {}}')
    assert certificates.examine(tmp_path / "host.json") == []
