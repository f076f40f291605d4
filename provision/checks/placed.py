"""Run programs of the host for the checks, and read the manifests of placed files. Does IO, changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from provision.errors import HostError
from provision.system import run

MANIFESTS = Path("/etc/provision/files.d")


def ask(*words: str) -> str:
    """Return the standard output of a program, whatever its exit code; empty where the program is not installed."""
    try:
        return run(*words, check=False).stdout
    except HostError:
        return ""


def read_manifests() -> dict[Path, list[dict[str, str]] | None]:
    """Read every manifest; None for a damaged one."""
    found: dict[Path, list[dict[str, str]] | None] = {}
    for path in sorted(MANIFESTS.glob("[a-z]*.json")):
        try:
            found[path] = [dict(row) for row in json.loads(path.read_text())["files"]]
        except (ValueError, KeyError, TypeError):
            found[path] = None
    return found


def manifests() -> dict[str, list[dict[str, str]]]:
    """Return the files of each sound manifest by its name; a check of its own reports damaged ones."""
    return {path.stem: rows for path, rows in read_manifests().items() if rows is not None}


def role(manifest: str) -> str:
    """Return the tag of the role that wrote a manifest: backup-secrets belongs to the role backup."""
    return manifest.partition("-")[0]
