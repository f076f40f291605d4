"""Contents of a bundle: the packages of every role, and the manifest. Pure.

A contract test compares the list with the roles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Debian packages by role; {major} is PostgreSQL's.
PACKAGES = {
    "preflight": ("python3", "python3-apt", "sudo"),  # required by Ansible itself
    "tls": ("openssl", "ssl-cert"),
    "postgresql": ("postgresql-{major}", "postgresql-client-{major}", "postgresql-common"),
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
    """Return every package that a run may install, without dependencies."""
    rows = [*PACKAGES.values(), PGVECTOR[pgvector_install_method]]
    return sorted({name.format(major=major) for row in rows for name in row})


@dataclass(frozen=True)
class Bundle:
    """Target and contents of a bundle: `files` maps each path to its SHA-256."""

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
