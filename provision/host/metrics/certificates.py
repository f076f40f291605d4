"""Expiry of certificates. Reads PEM files with the `openssl` command; Python's ssl module has no public parser."""

from __future__ import annotations

import ssl
from pathlib import Path

from provision import system
from provision.errors import HostError
from provision.host.metrics.exposition import Metric

FOLDER = Path("/etc/provision/tls")


def metrics(folder: Path = FOLDER) -> list[Metric]:
    """Read every certificate of a folder. Raises HostError for a file without one."""
    ends = tuple(({"certificate": str(path)}, end(path)) for path in sorted(folder.glob("*.crt")))
    return [Metric("provision_certificate_expiry_timestamp_seconds", "When a certificate expires.", ends)]


def end(path: Path) -> float:
    """Return the expiry of the first certificate in a file, as Unix time."""
    done = system.run("openssl", "x509", "-in", path, "-noout", "-enddate", check=False)
    if not done.ok:
        said = done.stderr.strip().partition("\n")[0]
        raise HostError("a certificate cannot be read", where=str(path), seen=said, run="ls -l /etc/provision/tls")
    return float(ssl.cert_time_to_seconds(done.stdout.strip().partition("=")[2]))
