"""Contents of a bundle's manifest. Pure. The packages are in provision.plan.packages."""

from __future__ import annotations

from dataclasses import dataclass, field

SUITE, COMPONENT = "bundle", "main"
KEY, MANIFEST, SIGNATURE = "key.gpg", "bundle.json", "bundle.json.sig"
SCHEMA = 1


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
