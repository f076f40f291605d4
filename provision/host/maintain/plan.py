"""What the house-keeping of this host is meant to do: /etc/provision/maintenance.json. Reads files, nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from provision.errors import HostError
from provision.plan import record

PATH = Path("/etc/provision/maintenance.json")


@dataclass(frozen=True)
class Plan:
    """Days of retention (0: for ever), and how gently it is done.

    `lock_timeout_ms` bounds two things: how long a batch waits for the application, and, because no batch may last
    longer, how long the application waits for a batch.
    """

    url: str
    activities_days: int = 90
    metrics_days: int = 30
    sessions_days: int = 7
    cleanup: bool = True
    batch_rows: int = 5000
    lock_timeout_ms: int = 1000
    migration_wait_s: float = 60.0
    bloat_percent: int = 50
    bloat_mb: int = 64
    age_limit_h: int = 0


def read(path: Path = PATH) -> Plan:
    """Read the plan, and where the database is. Raises HostError on a host that has none."""
    try:
        found = json.loads(path.read_text())
        found.pop("schema")
        return Plan(url=_url(), **found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostError(
            "this host has no plan for its house-keeping",
            where=str(path), seen=str(error),
            allowed="a host that site.yml has converged, read by root or postgres",
            run="ansible-playbook site.yml -i INVENTORY --tags maintenance",
        ) from None  # fmt: skip


def _url() -> str:
    known = record.read()
    server, database = known["postgresql"], known["database"]
    return f"host={server['socket_directory']} port={server['port']} dbname={database['name']} user={database['owner']}"
