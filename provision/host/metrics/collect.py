"""Collect all metrics of the host as text. Does IO, as postgres.

A source that fails does not hide the others: its metrics are left out, provision_collector_success is 0 for it, and the
reason is returned. The database is read as the backup role, which may read everything and write nothing
(pg_read_all_data): the session runs no function, view or policy of a table's owner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from provision import system
from provision.database import connect_pinned
from provision.errors import ProvisionError
from provision.host.metrics import backup, certificates, database, pooler
from provision.host.metrics.exposition import Metric, render
from provision.host.pooler import console
from provision.plan import load
from provision.plan.schema import Plan
from provision.quoting import conninfo

APPLICATION = "provision metrics"
STATEMENT_TIMEOUT_MS = 10_000
OPTIONS = "-c default_transaction_read_only=on -c row_security=off"


@dataclass(frozen=True)
class Collected:
    """The text of a .prom file, and a reason for each source that failed."""

    text: str
    failures: tuple[str, ...]


def collect() -> Collected:
    """Read backups, certificates, database and pooler. Raises HostError on a host without a plan."""
    plan = load.load()
    sources: dict[str, Callable[[], list[Metric]]] = {
        "backup": lambda: backup.metrics(plan.backup, system.evidence("backup"), system.evidence("drill")),
        "certificates": certificates.metrics,
        "database": lambda: _database(plan),
    }
    if plan.pooler.enabled:
        sources["pooler"] = lambda: pooler.metrics(*console.statistics())
    found: list[Metric] = []
    failures, success = [], []
    for name, read in sources.items():
        try:
            found += read()
            success.append(({"collector": name}, 1.0))
        except ProvisionError as error:
            failures.append(f"{name}: {error}")
            found += [pooler.DOWN] if name == "pooler" else []
            success.append(({"collector": name}, 0.0))
    found.append(Metric("provision_collector_success", "1 if the source could be read.", tuple(success)))
    return Collected(render(found), tuple(failures))


def _database(plan: Plan) -> list[Metric]:
    url = f"{plan.server.url(plan.access.database, plan.access.backup)} {conninfo({'options': OPTIONS})}"
    with connect_pinned(url, application=APPLICATION, statement_timeout_ms=STATEMENT_TIMEOUT_MS) as session:
        return database.metrics(session, plan.maintenance)
