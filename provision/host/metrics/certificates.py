"""Expiry of the certificates in /etc/provision/tls. Reads PEM files."""

from __future__ import annotations

import datetime
from pathlib import Path

from provision.errors import HostError
from provision.host.metrics.exposition import Metric

FOLDER = Path("/etc/provision/tls")


def metrics(folder: Path = FOLDER) -> list[Metric]:
    """Read every certificate of a folder. Raises HostError for a file that contains none."""
    ends = tuple(({"certificate": str(path)}, end(path)) for path in sorted(folder.glob("*.crt")))
    return [Metric("provision_certificate_expiry_timestamp_seconds", "When a certificate ends.", ends)]


def end(path: Path) -> float:
    """Return the expiry of a file's first certificate in seconds since 1970."""
    from cryptography import x509  # a host without TLS has no python3-cryptography

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise HostError(
            "cannot read a certificate", where=str(path), seen=str(error), run="ls -l /etc/provision/tls"
        ) from None
    aware: datetime.datetime | None = getattr(certificate, "not_valid_after_utc", None)  # cryptography 42 and newer
    if aware is None:
        naive: datetime.datetime = getattr(certificate, "not_valid_after")  # noqa: B009 - gone from newer versions
        aware = naive.replace(tzinfo=datetime.UTC)
    return aware.timestamp()
