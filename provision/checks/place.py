"""Where a host keeps what is checked, and the form of a check that looks at the host. Reads /etc/provision alone."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.checks.finding import Finding, Severity

MANIFESTS = Path("/etc/provision/files.d")
Row = tuple[str, str] | tuple[str, str, Severity]
"""What was seen, and the command that mends it; a row may be worse, or less bad, than its check."""


@dataclass(frozen=True)
class Place:
    """A host of ours, as its own record tells it."""

    record: dict[str, Any]
    name: str

    @property
    def major(self) -> int:
        """The server's major version."""
        return int(self.record["postgresql"]["major"])

    @property
    def data(self) -> Path:
        """The data directory."""
        return Path(self.record["postgresql"]["data_directory"])

    @property
    def unit(self) -> str:
        """The server's unit."""
        return f"postgresql@{self.major}-main.service"

    @property
    def database(self) -> str:
        """The name of our database."""
        return str(self.record["database"]["name"])

    @property
    def owner(self) -> str:
        """The role that owns it."""
        return str(self.record["database"]["owner"])

    def url(self, database: str = "", user: str = "postgres") -> str:
        """Give the connection string over the socket."""
        server = self.record["postgresql"]
        return f"host={server['socket_directory']} port={server['port']} dbname={database or self.database} user={user}"

    def site(self, tags: str, more: str = "") -> str:
        """Give the command that converges a part of this host again, to be run on the controller."""
        profile = self.record.get("profile", "prod")
        return f"ansible-playbook site.yml -i inventories/{profile} --limit {self.name} --tags {tags}{more}"

    def manifests(self) -> dict[str, list[dict[str, str]]]:
        """Give what each role placed, by the name of its set; damaged ones are left out (a check names them)."""
        return {path.stem: rows for path, rows in read_manifests().items() if rows is not None}


def read_manifests() -> dict[Path, list[dict[str, str]] | None]:
    """Read every manifest; None for one that cannot be understood."""
    found: dict[Path, list[dict[str, str]] | None] = {}
    for path in sorted(MANIFESTS.glob("[a-z]*.json")):
        try:
            found[path] = [dict(row) for row in json.loads(path.read_text())["files"]]
        except (ValueError, KeyError, TypeError):
            found[path] = None
    return found


def role(manifest: str) -> str:
    """Name the tag of the role that placed a set: backup-secrets is the backup role's."""
    return re.split("-", manifest)[0]


@dataclass(frozen=True)
class HostCheck:
    """One check of the host: `look` gives a row for each thing that is wrong."""

    id: str
    area: str
    severity: Severity
    wanted: str
    why: str
    look: Callable[[Place], Iterable[Row]]
    safe: bool = False


def examine(place: Place, checks: Iterable[HostCheck]) -> list[Finding]:
    """Run host checks; what this user may not read comes as unseen."""
    found = []
    for check in checks:
        try:
            rows = list(check.look(place))
        except PermissionError as error:
            rows = [(f"{error.filename}: {error.strerror}", "run it as root", Severity.UNSEEN)]
        for seen, fix, *worse in rows:
            severity = worse[0] if worse else check.severity
            found.append(Finding(check.id, check.area, severity, seen, check.wanted, check.why, fix, check.safe))
    return found


def ask(*words: str) -> str:
    """Give what a program of the host prints, whatever its exit code; empty where there is no such program."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout  # noqa: S603
    except FileNotFoundError:
        return ""
