"""Real certificate files: each kind of defect is reported with its file, a good certificate has none."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from provision.checks.certificate import Certificate, Leaf, days_left, due, judge, look
from provision.checks.certificates import leaves, overdue
from provision.checks.certificates import problems as problems_of
from provision.checks.registry import Scope, examine, get
from provision.plan.schema import Certificate as TlsCertificate
from provision.plan.schema import Plan
from tests.authority import Authority, Pair
from tests.plans import sample

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


def plan_of(folder: Path) -> Plan:
    described = TlsCertificate("server", str(folder / "server.crt"), str(folder / "server.key"), "server", "db1",
                               ("db1",), own_names=True)  # fmt: skip
    return sample(tls={"enabled": True, "name": "db1", "ca": str(folder / "ca.crt"), "certificates": (described,)})


def test_doctor_warns_at_a_third_of_the_lifetime_and_reports_problems_as_critical(tmp_path: Path) -> None:
    (leaf,) = leaves(plan_of(tmp_path))
    leaf, authority = replace(leaf, keeper=""), tmp_path / "ca.crt"
    authority.write_text(AUTHORITY.text)

    def found(pair: Pair) -> list[str]:
        pair.write(tmp_path, "server")
        rows = {"certificate": problems_of(leaf, authority), "certificate-age": overdue(leaf, authority)}
        return [f"{get(name).severity}: {row}" for name, texts in rows.items() for row in texts]

    assert found(AUTHORITY.issue("db1")) == []
    assert found(AUTHORITY.issue("db1", begins=-300, ends=97)) == [f"warning: {tmp_path}/server.crt: 96 days left"]
    (expired,) = found(AUTHORITY.issue("db1", begins=-400, ends=-3))
    assert expired.startswith(f"critical: {tmp_path}/server.crt: expired on")


def test_fix_of_a_certificate_names_inventory_and_host_of_the_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    found = [each for each in examine(Scope.LOCAL, plan, site=plan.site) if each.id == "certificate"]
    assert f"{tmp_path}/server.crt: cannot be read: No such file or directory" in {each.seen for each in found}
    assert {each.fix for each in found} == {
        "ansible-playbook site.yml -i inventories/prod --limit db1 --tags tls  # docs/the-certificate-expired.md"
    }


def test_pooler_certificate_is_judged_by_its_common_name(tmp_path: Path) -> None:
    described = TlsCertificate("pooler-client", f"{tmp_path}/p.crt", f"{tmp_path}/p.key", "client", "minion_pooler", (),
                               own_names=False)  # fmt: skip
    (leaf,) = leaves(sample(tls={"certificates": (described,)}))
    assert (leaf.names, leaf.common_name, leaf.purpose) == ((), "minion_pooler", "client")


def test_a_host_without_tls_has_no_findings() -> None:
    assert leaves(sample()) == []
