"""What a bundle's manifest says. Pure. Its packages are those of provision.plan.packages."""

from __future__ import annotations

from dataclasses import dataclass, field

SUITE, COMPONENT = "bundle", "main"
KEY, MANIFEST, SIGNATURE = "key.gpg", "bundle.json", "bundle.json.sig"
SCHEMA = 1


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
