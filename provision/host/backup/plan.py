"""What this host's backups are meant to be, and the evidence of what they are. Reads /etc/provision, writes
/var/lib/provision.

Evidence holds no secrets and is readable by everybody on the host: doctor, the exporters and the audit read it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provision.errors import HostError, UsageError
from provision.plan import record

PATH = Path("/etc/provision/backup.json")
EVIDENCE = Path("/var/lib/provision")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Plan:
    """The role's wishes, with where PostgreSQL is on this host. Sizes are MiB, ages hours; 0 is no limit."""

    stanza: str
    physical: bool
    logical: bool
    repository: dict[str, str]
    database: str
    owner: str
    archive_timeout_s: int
    queue_max_mb: int
    processes: int
    age_limit_h: int
    drill_age_limit_h: int
    dumps: dict[str, Any]
    major: int
    port: int
    data: Path
    configuration: Path
    socket: str

    @property
    def programs(self) -> Path:
        """The server's folder of programs."""
        return Path(f"/usr/lib/postgresql/{self.major}/bin")

    @property
    def unit(self) -> str:
        """The server's unit."""
        return f"postgresql@{self.major}-main.service"

    @property
    def place(self) -> str:
        """Where the repository is, for people."""
        where = self.repository["host"] if self.repository["kind"] == "host" else self.repository["kind"]
        return f"{where}:{self.repository['path']}"

    def url(self, database: str = "", *, port: int = 0, socket: str = "") -> str:
        """Give the connection string of a database over the socket, as the superuser."""
        host = socket or self.socket
        return f"host={host} port={port or self.port} dbname={database or self.database} user=postgres"

    def need_physical(self) -> None:
        """Raise HostError where pgBackRest is off."""
        if not self.physical:
            raise HostError(
                "pgBackRest is off on this host",
                where=str(PATH),
                seen="backup_physical is false (the dev profile)",
                allowed="logical dumps: --type logical, or --source dump",
                run="set backup_physical: true, then site.yml",
            )


def read(path: Path = PATH) -> Plan:
    """Read the plan. Raises HostError on a host that has none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HostError(
            "this host has no plan for backups",
            where=str(path), seen=str(error),
            allowed="a host that site.yml has converged, read by root or a member of postgres",
            run="ansible-playbook site.yml -i INVENTORY --tags backup",
        ) from None  # fmt: skip
    server = record.read()["postgresql"]
    found.pop("schema")
    return Plan(
        **found, major=int(server["major"]), port=int(server["port"]), data=Path(server["data_directory"]),
        configuration=Path(server["configuration_directory"]), socket=server["socket_directory"],
    )  # fmt: skip


def evidence(name: str) -> dict[str, Any]:
    """Read a piece of evidence; {} where there is none."""
    try:
        found = json.loads((EVIDENCE / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(name: str, facts: dict[str, Any]) -> None:
    """Write a piece of evidence, atomically and for everybody to read."""
    path = EVIDENCE / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        stream.write(json.dumps({"schema": 1, **facts}, indent=2, default=str) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
        os.fchmod(stream.fileno(), 0o644)
    Path(stream.name).replace(path)


def stamp(at: float | None = None) -> str:
    """Write a moment as 2026-11-24T01:30:00+00:00."""
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="seconds")


def compact(at: float | None = None) -> str:
    """Write a moment for a file's name: 20261124T013000Z."""
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).strftime("%Y%m%dT%H%M%SZ")


def moment(text: str) -> float:
    """Read what `stamp` wrote."""
    return datetime.fromisoformat(text).timestamp()


def named(text: str, what: str) -> str:
    """Let a name through that is safe in a path and in SQL. Raises UsageError."""
    if not NAME.fullmatch(text):
        raise UsageError(f"this is no {what}", seen=repr(text)[:80], allowed="letters, digits, _ . and -")
    return text
