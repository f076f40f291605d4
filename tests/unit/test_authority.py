"""The authority on the controller: made once, closed to other users, and what it issues is good by the host's judge."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from provision.checks.certificate import Leaf, days_left, judge
from provision.checks.certificate_reader import inspect
from provision.controller import authority
from provision.errors import HostError, UsageError
from tests.contract.repository import ROOT

SECRET = "a passphrase for tests"  # noqa: S105
DAY = 86400


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of an environment's authority, made."""
    found = tmp_path / "prod" / "tls"
    assert authority.make(found, SECRET, "ecdsa", 3650) is True
    return found


def problems(directory: Path, pair: authority.Pair, leaf: Leaf, now: float) -> list[str]:
    root, texts = directory / "ca.crt", (pair.certificate.encode(), pair.key.encode())
    return judge(leaf, root, inspect(root.read_bytes(), *texts, leaf.purpose, leaf.keeper, 0o640), now)


def leaf(*names: str, common_name: str = "", purpose: str = "server") -> Leaf:
    return Leaf(Path("/c.crt"), Path("/c.key"), names, common_name, purpose)


def test_is_made_once_and_closed_to_other_users(directory: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in [directory, *directory.iterdir()]}
    assert modes == {"tls": 0o700, "ca.crt": 0o644, "ca.key": 0o600}
    assert (directory / "ca.key").read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    found = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    assert found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "provision prod"
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert 3649 < (found.not_valid_after_utc.timestamp() - time.time()) / DAY <= 3650
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert authority.make(directory, "another", "rsa", 10) is False
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    assert authority.make(tmp_path / "tls", "", "ecdsa", 10, check=True) is True
    assert authority.clients(tmp_path / "tls", "", ["reporter"], "ecdsa", 10, check=True) == ["reporter"]
    assert list(tmp_path.iterdir()) == []


def test_parallel_hosts_make_one(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from provision.controller import authority; "
    script += f"print(authority.make(Path(sys.argv[1]), {SECRET!r}, 'ecdsa', 10))"
    command = [sys.executable, "-c", script, str(tmp_path / "tls")]

    def run(number: int) -> str:
        del number
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(run, range(4))) == ["False", "False", "False", "True"]
    authority.unlock(tmp_path / "tls", SECRET)


def test_a_key_that_an_interrupted_run_left_is_used(directory: Path) -> None:
    key = (directory / "ca.key").read_bytes()
    (directory / "ca.crt").unlink()
    assert authority.make(directory, SECRET, "ecdsa", 10) is True
    assert (directory / "ca.key").read_bytes() == key
    authority.unlock(directory, SECRET).issue("db1", ["db1"], "server", "ecdsa", 5)


def test_says_what_is_wrong_with_key_and_passphrase(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tls_ca_passphrase does not decrypt the CA key"):
        authority.unlock(directory, "wrong")
    with pytest.raises(UsageError, match="the CA key needs a passphrase"):
        authority.make(tmp_path / "tls", "", "ecdsa", 10)
    (directory / "ca.key").unlink()
    with pytest.raises(HostError, match="cannot read the CA key"):
        authority.unlock(directory, SECRET)
    (directory / "ca.crt").write_text("hello")
    with pytest.raises(HostError, match="cannot read the CA certificate"):
        authority.unlock(directory, SECRET)


@pytest.mark.parametrize("key_type", ["ecdsa", "rsa"])
def test_what_it_issues_is_good(directory: Path, key_type: str, tmp_path: Path) -> None:
    ours = authority.unlock(directory, SECRET)
    names = ("db1", "localhost", "10.0.0.5", "::1")
    pair = ours.issue("db1", names, "server", key_type, 397)
    now = time.time() + 1  # the end is a whole second
    assert problems(directory, pair, leaf(*names, common_name="db1"), now) == []
    assert problems(directory, pair, leaf("db2"), now) == [
        "/c.crt: valid for db1, localhost, 10.0.0.5, ::1, not for db2"
    ]
    seen = inspect((directory / "ca.crt").read_bytes(), pair.certificate.encode(), b"", "server", "", 0).certificate
    assert not isinstance(seen, str)
    assert (seen.key_type, days_left(seen, time.time())) == (key_type, 396)
    (tmp_path / "c.crt").write_text(pair.certificate)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", "::1"]
    subprocess.run([*command, "-CAfile", directory / "ca.crt", tmp_path / "c.crt"], check=True, capture_output=True)

    client = ours.issue("minion_pooler", (), "client", key_type, 397)
    assert problems(directory, client, leaf(common_name="minion_pooler", purpose="client"), now) == []
    assert problems(directory, client, leaf(), now)[0].endswith("extended key usage excludes server authentication")


def test_rsa_keys_are_long_enough() -> None:
    key = authority.new_key("rsa")
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 3072


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    authority.make(tmp_path / "tls", SECRET, "ecdsa", 30)
    pair = authority.unlock(tmp_path / "tls", SECRET).issue("db1", ["db1"], "server", "ecdsa", 397)
    found, root = (
        x509.load_pem_x509_certificate(text)
        for text in (pair.certificate.encode(), (tmp_path / "tls" / "ca.crt").read_bytes())
    )
    assert found.not_valid_after_utc == root.not_valid_after_utc


def test_a_name_that_a_certificate_cannot_hold_is_named(directory: Path) -> None:
    with pytest.raises(UsageError, match="a certificate cannot hold this name") as refused:
        authority.unlock(directory, SECRET).issue("db1", ["dätenbank"], "server", "ecdsa", 10)
    assert "dätenbank" in refused.value.seen


def test_clients_get_files_once_and_again_when_they_are_bad_or_due(directory: Path) -> None:
    def issued(*, key_type: str = "ecdsa", now: float | None = None) -> list[str]:
        return authority.clients(directory, SECRET, ["reporter", "report"], key_type, 100, now=now)

    assert issued() == ["reporter", "report"]
    folder = directory / "clients"
    modes = {path.name: path.stat().st_mode & 0o777 for path in [folder, *folder.iterdir()]}
    assert modes == {
        "clients": 0o700, "report.crt": 0o644, "report.key": 0o600, "reporter.crt": 0o644, "reporter.key": 0o600,
    }  # fmt: skip
    assert issued() == []
    (folder / "reporter.key").chmod(0o644)
    assert issued() == ["reporter"]
    (folder / "report.crt").unlink()
    assert issued() == ["report"]
    copy(folder, "report", "reporter")
    assert issued() == ["reporter"]  # another role's
    assert issued(now=time.time() + 60 * DAY) == []
    assert issued(now=time.time() + 70 * DAY) == ["reporter", "report"]
    assert issued(key_type="rsa") == ["reporter", "report"]
    with pytest.raises(UsageError, match="tls_clients: not a file name"):
        authority.clients(directory, SECRET, ["../ca"], "ecdsa", 10)


def copy(folder: Path, one: str, other: str) -> None:
    for end in ("crt", "key"):
        (folder / f"{other}.{end}").write_text((folder / f"{one}.{end}").read_text())


def test_trust_joins_certificates_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A")
    (tmp_path / "b").write_text("B\n\n")
    assert authority.trust([tmp_path / "a", "", tmp_path / "none", tmp_path / "b"]) == "A\nB\n"


def test_provided_files_that_are_missing_and_an_open_key_are_named(tmp_path: Path) -> None:
    key, certificate = tmp_path / "a.key", tmp_path / "a.crt"
    key.write_text("K")
    certificate.write_text("C")
    key.chmod(0o640)
    files = {"certificate": str(certificate), "key": str(key), "ca": "/none/ca.crt"}
    with pytest.raises(UsageError) as refused:
        authority.provided(files)
    assert refused.value.what == (
        f"tls_provided_key {key}: mode 0640 gives other users access to the key; expected 0600; "
        "tls_provided_ca /none/ca.crt: No such file or directory"
    )
    key.chmod(0o600)
    assert authority.provided({**files, "ca": str(certificate)}) == authority.Pair("C", "K")
    assert authority.provided({"certificate": "", "key": "", "ca": ""}) is None
