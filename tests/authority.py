"""An authority of a test's own, which issues whatever a test needs: expired, early, for other names, for clients."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
USES = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH],
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "peer": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
}


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write NAME.crt and NAME.key, the key for its owner alone; give both paths."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_text(self.certificate)
        key.touch(0o600)
        key.chmod(0o600)
        key.write_text(self.key)
        return certificate, key


class Authority:
    """A root and its key."""

    def __init__(self, name: str = "authority of a test") -> None:
        """Make both."""
        self._key: ec.EllipticCurvePrivateKey = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = self._sign(
            self._builder(self._name, self._key, now - DAY, now + 3650 * DAY).add_extension(
                x509.BasicConstraints(ca=True, path_length=0), critical=True
            )
        )

    @classmethod
    def of(cls, certificate: Path, key: Path, passphrase: bytes) -> Authority:
        """Take an authority that is there."""
        self = cls.__new__(cls)
        found = load_pem_private_key(key.read_bytes(), passphrase)
        assert isinstance(found, ec.EllipticCurvePrivateKey)
        self._key, self._certificate = found, x509.load_pem_x509_certificate(certificate.read_bytes())
        self._name = self._certificate.subject
        return self

    def again(self, certificate: str, *, begins: float, ends: float) -> Pair:
        """Issue a certificate like another one, for another time."""
        known = x509.load_pem_x509_certificate(certificate.encode())
        names = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        common = known.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        every = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        return self.issue(*every, common_name=str(common), begins=begins, ends=ends)

    @property
    def text(self) -> str:
        """The root, as PEM."""
        return self._certificate.public_bytes(Encoding.PEM).decode()

    def issue(
        self,
        *names: str,
        common_name: str = "somebody",
        begins: float = -1,
        ends: float = 397,
        use: str = "server",
    ) -> Pair:
        """Issue a certificate for names and addresses; `begins` and `ends` are days from now."""
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
        builder = self._builder(subject, key, now + begins * DAY, now + ends * DAY)
        builder = builder.add_extension(x509.ExtendedKeyUsage(USES[use]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return Pair(self._sign(builder).public_bytes(Encoding.PEM).decode(), plain)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime.datetime, ends: datetime.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
