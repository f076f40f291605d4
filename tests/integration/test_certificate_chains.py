"""Chains are accepted and refused as OpenSSL does: each case is judged by both."""

from __future__ import annotations

import datetime
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provision.checks.certificate import Certificate, Leaf, judge
from provision.checks.certificate_reader import inspect

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def new_key(kind: str = "ec") -> PrivateKey:
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("rsa")))
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP384R1())


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, which may issue others."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def text(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_text(self) -> str:
        old = not isinstance(self.key, ed25519.Ed25519PrivateKey)
        form = PrivateFormat.TraditionalOpenSSL if old else PrivateFormat.PKCS8
        return self.key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    key: str = "ec",
    ca: bool = True,
    path_length: int | None = None,
    uses: tuple[x509.ObjectIdentifier, ...] = (),
    usage: tuple[str, ...] = (),
    ends: int = 100,
    pss: bool = False,
) -> Issued:
    """Issue a certificate; without an issuer it signs itself."""
    own = new_key(key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 10 * DAY)
        .not_valid_after(NOW + ends * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("db1")]), critical=False)
    if uses:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if usage:
        every = (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        )  # fmt: skip
        builder = builder.add_extension(x509.KeyUsage(**{name: name in usage for name in every}), critical=True)
    signer = issuer.key if issuer else own
    how = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    form = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH) if pss else None
    return Issued(builder.sign(signer, how, rsa_padding=form), own)


def server(issuer: Issued, **options: object) -> Issued:
    return issue("db1", issuer, ca=False, **{"uses": (SERVER,), **options})  # type: ignore[arg-type]


ROOT = issue("root")
BETWEEN = issue("between", ROOT)
DEEPER = issue("deeper", BETWEEN)
SHORT = issue("short", path_length=0)
BELOW_SHORT = issue("below short", SHORT)
FALSE = server(ROOT)  # not a CA, but it signs
RSA = issue("rsa", key="rsa2048")
ED = issue("ed", key="ed25519")
IMPOSTOR = issue("root")

CASES: dict[str, tuple[list[Issued], list[Issued], str]] = {
    "root": ([server(ROOT)], [ROOT], ""),
    "root among others": ([server(ROOT)], [RSA, ROOT], ""),
    "one between": ([server(BETWEEN), BETWEEN], [ROOT], ""),
    "two between, in any order": ([server(DEEPER), BETWEEN, DEEPER], [ROOT], ""),
    "the one between among the roots": ([server(BETWEEN)], [BETWEEN, ROOT], ""),
    "rsa": ([server(RSA, key="rsa2048")], [RSA], ""),
    "rsa with pss": ([server(RSA, pss=True)], [RSA], ""),
    "ed25519": ([server(ED, key="ed25519")], [ED], ""),
    "no use stated": ([server(ROOT, uses=())], [ROOT], ""),
    "both uses": ([server(ROOT, uses=(CLIENT, SERVER))], [ROOT], ""),
    "key usage of rsa": ([server(RSA, key="rsa2048", usage=("key_encipherment",))], [RSA], ""),
    "right path length": ([server(SHORT)], [SHORT], ""),
    "missing between": ([server(BETWEEN)], [ROOT], "issuer CN=between not found"),
    "missing deeper": ([server(DEEPER), DEEPER], [ROOT], "issuer CN=between not found"),
    "no root": ([server(BETWEEN), BETWEEN], [BETWEEN], "issuer CN=root not found"),
    "same name, another key": ([server(ROOT)], [IMPOSTOR], "the signature is not one of issuer CN=root"),
    "signed by a server": ([server(FALSE), FALSE], [ROOT], "issuer CN=db1 is not a CA"),
    "path too long": ([server(BELOW_SHORT), BELOW_SHORT], [SHORT], "issuer CN=short allows 0 intermediate"),
    "client only": ([server(ROOT, uses=(CLIENT,))], [ROOT], "extended key usage excludes server authentication"),
    "key usage": ([server(ROOT, usage=("content_commitment",))], [ROOT], "key usage excludes server authentication"),
}
KEYLESS = issue("keyless", ROOT, usage=("crl_sign",))
CLIENTS = issue("clients", ROOT, uses=(CLIENT,))
CASES["issuer may not sign"] = ([server(KEYLESS), KEYLESS], [ROOT], "issuer CN=keyless may not sign certificates")
CASES["issuer of clients"] = ([server(CLIENTS), CLIENTS], [ROOT], "issuer CN=clients may not issue server certificates")


def judged(chain: list[Issued], roots: list[Issued]) -> tuple[Certificate, list[str]]:
    text, trusted = ("".join(each.text for each in every).encode() for every in (chain, roots))
    seen = inspect(trusted, text, chain[0].key_text.encode(), "server", "root:ssl-cert", 0o640)
    assert isinstance(seen.certificate, Certificate), seen.certificate
    leaf = Leaf(Path("/c.crt"), Path("/c.key"), ("db1",))
    return seen.certificate, judge(leaf, Path("/ca.crt"), seen, NOW.timestamp())


@pytest.mark.parametrize("name", CASES)
def test_accepts_what_openssl_accepts_and_refuses_what_it_refuses(name: str, tmp_path: Path) -> None:
    chain, roots, reason = CASES[name]
    certificate, problems = judged(chain, roots)
    assert certificate.untrusted.startswith(reason)
    assert bool(certificate.untrusted) == bool(reason)
    expected = [f"/c.crt: not issued by /ca.crt for a server: {certificate.untrusted}"] if reason else []
    assert problems == expected
    for file, every in (("c", chain), ("ca", roots)):
        (tmp_path / file).write_text("".join(each.text for each in every))
    trust: list[str | Path] = ["-CAfile", tmp_path / "ca", "-no-CApath", "-no-CAstore", "-untrusted", tmp_path / "c"]
    command = ["openssl", "verify", "-no_check_time", "-purpose", "sslserver", *trust, tmp_path / "c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not reason), done.stderr


def test_an_intermediate_that_expired_and_weak_keys_are_refused() -> None:
    old = issue("old", ROOT, ends=-1)
    day = f"{old.certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    assert judged([server(old), old], [ROOT])[1] == [f"/c.crt: an intermediate certificate expired on {day}"]
    small = server(ROOT, key="rsa1024")
    assert judged([small], [ROOT])[1] == ["/c.crt: RSA key of 1024 bits; allowed: 2048 or more"]
