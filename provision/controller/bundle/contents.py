"""What belongs in a bundle: the packages of every role, and what its manifest says. Pure.

A contract test compares the list with the roles, so that none is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Debian packages by the role that installs them; {major} is PostgreSQL's.
PACKAGES = {
    "plan": ("python3", "python3-apt", "sudo"),  # what Ansible itself needs of a host
    "packages": ("postgresql-common",),  # has the public key of PGDG's archive
    "tls": ("python3-cryptography", "ssl-cert"),
    "postgresql": ("postgresql-{major}", "postgresql-client-{major}"),
    "toolkit": ("python3-psycopg", "python3-click"),
    "pgbouncer": ("pgbouncer",),
    "backup": ("pgbackrest", "openssh-client", "openssh-server"),
    "monitoring": ("logrotate", "prometheus-node-exporter", "prometheus-postgres-exporter"),
}
PGVECTOR = {
    "package": ("postgresql-{major}-pgvector",),
    "source": ("gcc", "libc6-dev", "make", "postgresql-server-dev-{major}"),
}
SUITE, COMPONENT = "bundle", "main"
KEY, MANIFEST, SIGNATURE = "key.gpg", "bundle.json", "bundle.json.sig"
SCHEMA = 1


def packages(major: int, pgvector_install_method: str) -> list[str]:
    """Name every package that a run may ask of apt, without what these depend on."""
    rows = [*PACKAGES.values(), PGVECTOR[pgvector_install_method]]
    return sorted({name.format(major=major) for row in rows for name in row})


@dataclass(frozen=True)
class Bundle:
    """What a bundle was made for and what it holds: `files` maps each path in it to its SHA-256."""

    release: str
    architecture: str
    postgresql: int
    pgvector_install_method: str
    pgvector_version: str
    pgvector_sha256: str = ""
    pgvector_file: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    path: str = ""
    fingerprint: str = ""
    manifest_sha256: str = ""
