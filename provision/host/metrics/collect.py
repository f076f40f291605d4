"""Ask everything once and give it as text. On the host, as postgres. Does IO.

One source that fails does not hide the others: it has no samples, provision_collector_success is 0 for it, and the
reason is given back. Asks as minion_backup, which may read everything, verifiers too, and write nothing
(pg_read_all_data): so no function, view or policy of a table's owner may run in that session.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.database import connect_pinned
from provision.errors import HostError, ProvisionError
from provision.host.backup import plan as evidence
from provision.host.metrics import backup, certificates, database, pooler
from provision.host.metrics.exposition import Metric, render
from provision.host.pooler import console
from provision.plan import record

APPLICATION = "provision metrics"
STATEMENT_TIMEOUT_MS = 10_000
MAINTENANCE = Path("/etc/provision/maintenance.json")
DAYS = {"activities": "activities_days", "metrics": "metrics_days", "closed sessions": "sessions_days"}


@dataclass(frozen=True)
class Collected:
    """The text of a .prom file, and why what is missing from it is missing."""

    text: str
    failures: tuple[str, ...]


def collect() -> Collected:
    """Ask backups, certificates, database and pooler. Raises HostError on a host that is not ours."""
    known = record.read()
    sources: dict[str, Callable[[], list[Metric]]] = {
        "backup": _backup,
        "certificates": certificates.metrics,
        "database": lambda: _database(known),
    }
    if known.get("pooler"):
        sources["pooler"] = lambda: pooler.metrics(*console.figures())
    found: list[Metric] = []
    failures, success = [], []
    for name, ask in sources.items():
        try:
            found += ask()
        except ProvisionError as error:
            failures.append(f"{name}: {error}")
            found += [pooler.DOWN] if name == "pooler" else []
        success.append(({"collector": name}, float(not any(text.startswith(f"{name}: ") for text in failures))))
    found.append(Metric("provision_collector_success", "1 when a source could be asked.", tuple(success)))
    return Collected(render(found), tuple(failures))


def _backup() -> list[Metric]:
    found = _json(evidence.PATH)
    return backup.metrics(found, evidence.evidence("backup"), evidence.evidence("drill"))


def _database(known: dict[str, Any]) -> list[Metric]:
    server, where = known["postgresql"], known["database"]
    url = (
        f"host={server['socket_directory']} port={server['port']} dbname={where['name']} user={where['owner']}_backup"
        " options='-c default_transaction_read_only=on -c row_security=off'"
    )
    with connect_pinned(url, application=APPLICATION, statement_timeout_ms=STATEMENT_TIMEOUT_MS) as session:
        return database.metrics(session, _promised())


def _promised() -> dict[str, int]:
    """Give the days of retention that this host's house-keeping wants; the contract's where it says nothing."""
    if not MAINTENANCE.exists():
        return {}
    found = _json(MAINTENANCE)
    days = {name: int(found[key]) for name, key in DAYS.items() if key in found}
    return days if found.get("cleanup", True) else {**days, "expired sessions": -1}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HostError("a file of this host cannot be read", where=str(path), seen=str(error)) from None
    if not isinstance(found, dict):
        raise HostError("a file of this host is damaged", where=str(path))
    return found
