"""The environment's certificate authority on the controller: make it once, issue certificates, write those of clients.

Writes only below the authority's directory: ca.crt, ca.key (PKCS #8, encrypted with the passphrase), clients/. Keys of
hosts are made in memory and never written here. Nothing that exists is remade, except a client's certificate that is
bad or due. A lock on the directory lets the parallel hosts of a run make the authority once.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from provision.checks.certificate import Certificate, Leaf, due, judge, look
from provision.checks.certificate_reader import PURPOSES, validity
from provision.errors import HostError, UsageError
from provision.system import write

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
RSA_BITS = 3072
"""As strong as P-256 (NIST SP 800-57, part 1, table 2)."""
EARLY = datetime.timedelta(hours=1)
"""Certificates begin this long before they are made: a host's clock may be behind."""
NAMELESS = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "provision")])
"""Subject of a certificate without a common name, which etcd would take for the name of a user."""
COMMON_NAME_LIMIT = 64  # RFC 5280, ub-common-name
CLIENT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key (PEM)."""

    certificate: str
    key: str


@dataclass(frozen=True)
class Authority:
    """The environment's authority, unlocked."""

    certificate: x509.Certificate
    key: PrivateKey

    def issue(
        self, common_name: str, names: Sequence[str], purpose: str, key_type: str, days: int, now: float | None = None
    ) -> Pair:
        """Make a key and a certificate; it ends with the authority at the latest.

        Raises UsageError for a name that a certificate cannot hold.
        """
        key, begins = new_key(key_type), _now(now)
        ends = min(begins + datetime.timedelta(days=days), _now(validity(self.certificate)[1]))
        try:
            subject = x509.Name([_common_name(common_name)]) if common_name else NAMELESS
            builder = _builder(subject, self.certificate.subject, key, begins - EARLY, ends)
            if names:
                builder = builder.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), False)
        except ValueError as error:
            raise UsageError(
                "a certificate cannot hold this name", where=common_name, seen=f"{', '.join(names)}: {error}"
            ) from None
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(PURPOSES[purpose]), False)
        builder = builder.add_extension(self._identifier(), False)
        return Pair(_signed(builder, self.key), key_text(key))

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)


def make(
    directory: Path, passphrase: str, key_type: str, days: int, *, check: bool = False, now: float | None = None
) -> bool:
    """Make the authority where it is missing; say whether it was. With `check`, only say so.

    A key that an interrupted run left without its certificate is used. Raises UsageError and HostError.
    """
    if check or (directory / "ca.crt").exists():
        return not (directory / "ca.crt").exists()
    with _locked(directory):
        if (directory / "ca.crt").exists():  # by the run of another host, while this one waited
            return False
        directory.chmod(0o700)
        path = directory / "ca.key"
        if not path.exists():
            if not passphrase:
                raise UsageError(
                    "the CA key needs a passphrase",
                    allowed="tls_ca_passphrase, in the vault",
                    run="provision secrets init",
                )
            write(path, key_text(new_key(key_type), BestAvailableEncryption(passphrase.encode())), mode=0o600)
        key, begins = _unlock(path, passphrase), _now(now)
        name = x509.Name([_common_name(f"provision {directory.parent.name}")])
        builder = _builder(name, name, key, begins - EARLY, begins + datetime.timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        write(directory / "ca.crt", _signed(builder.add_extension(usage, True), key), mode=0o644)
        return True


def unlock(directory: Path, passphrase: str) -> Authority:
    """Read the authority. Raises HostError where a file is missing, UsageError for a wrong passphrase."""
    path = directory / "ca.crt"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise HostError("cannot read the CA certificate", where=str(path), seen=str(error)) from None
    return Authority(certificate, _unlock(directory / "ca.key", passphrase))


def trust(paths: Sequence[str | Path]) -> str:
    """Join the certificates of authorities; files that do not exist yet are left out. Raises HostError."""
    found = [Path(path).expanduser() for path in paths if path]
    try:
        return "".join(path.read_text().strip() + "\n" for path in found if path.exists())
    except (OSError, ValueError) as error:
        raise HostError("cannot read a CA certificate", seen=str(error)) from None


def provided(files: Mapping[str, str]) -> Pair | None:
    """Read the user's own certificate and key; None where `files` (certificate, key, ca) names none.

    Raises UsageError with every problem of the files.
    """
    if not files.get("certificate"):
        return None
    texts, problems = read_provided(files)
    if problems:
        raise UsageError("; ".join(problems))
    return Pair(texts["certificate"], texts["key"])


def read_provided(files: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the texts of the user's own files, and each file that cannot be read or a key that others can read."""
    texts, problems = {}, []
    for name in ("certificate", "key", "ca"):
        path = files.get(name, "")
        try:
            with Path(path).expanduser().open() as stream:
                mode = os.fstat(stream.fileno()).st_mode & 0o777
                texts[name] = stream.read()
        except (OSError, ValueError) as error:
            problems.append(f"tls_provided_{name} {path}: {getattr(error, 'strerror', None) or 'not a text file'}")
            continue
        if name == "key" and mode & 0o077:
            problems.append(
                f"tls_provided_{name} {path}: mode {mode:04o} gives other users access to the key; expected 0600"
            )
    return texts, problems


def clients(
    directory: Path,
    passphrase: str,
    names: Sequence[str],
    key_type: str,
    days: int,
    *,
    check: bool = False,
    now: float | None = None,
) -> list[str]:
    """Write a key and a certificate for each client that has none, a bad or a due one; give their names.

    With `check`, only give their names. Raises UsageError and HostError.
    """
    if bad := [name for name in names if not CLIENT_NAME.fullmatch(name)]:
        raise UsageError("tls_clients: not a file name", seen=", ".join(bad), allowed="letters, digits, _ . and -")
    if not names:
        return []
    folder = directory / "clients"
    moment = time.time() if now is None else now
    wanting = [name for name in names if _wanting(folder, name, key_type, moment)]
    if check or not wanting:
        return wanting
    with _locked(directory):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        authority = unlock(directory, passphrase)
        wanting = [name for name in wanting if _wanting(folder, name, key_type, moment)]
        for name in wanting:
            pair = authority.issue(name, (), "client", key_type, days, now)
            write(folder / f"{name}.key", pair.key, mode=0o600)
            write(folder / f"{name}.crt", pair.certificate, mode=0o644)
        return wanting


def _wanting(folder: Path, name: str, key_type: str, now: float) -> bool:
    leaf = Leaf(folder / f"{name}.crt", folder / f"{name}.key", (), name, "client", "")
    authority = folder.parent / "ca.crt"
    seen = look(leaf, authority)
    if judge(leaf, authority, seen, now) or not isinstance(seen.certificate, Certificate):
        return True
    return due(seen.certificate, now) or seen.certificate.key_type != key_type


def new_key(key_type: str) -> PrivateKey:
    """Make a key: ecdsa (P-256) or rsa (3072 bits)."""
    if key_type == "rsa":
        return rsa.generate_private_key(65537, RSA_BITS)
    return ec.generate_private_key(ec.SECP256R1())


def key_text(key: PrivateKey, encryption: KeySerializationEncryption | None = None) -> str:
    """Write a key as PEM (PKCS #8: the older form derives the encryption key with MD5)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()).decode()


def _unlock(path: Path, passphrase: str) -> PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() or None)
    except OSError as error:
        raise HostError(
            "cannot read the CA key",
            where=str(path),
            seen=str(error.strerror),
            allowed="the key of ca.crt, from a backup; a new CA means a new ca.crt for every client",
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(
            "tls_ca_passphrase does not decrypt the CA key", where=str(path), seen=str(error).partition(".")[0]
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise HostError("unknown type of CA key", where=str(path), allowed="ECDSA, RSA")
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, begins: datetime.datetime, ends: datetime.datetime
) -> x509.CertificateBuilder:
    """Begin a certificate."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _signed(builder: x509.CertificateBuilder, key: PrivateKey) -> str:
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _common_name(name: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_LIMIT])


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _now(now: float | None) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time.time() if now is None else now, datetime.UTC)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock on the directory, which is made where it is missing."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError("cannot open the CA directory", where=str(directory), seen=str(error.strerror)) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
