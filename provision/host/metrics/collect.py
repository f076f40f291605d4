"""Collect all metrics of the host as text. Does IO, as postgres.

A source that fails does not hide the others: its metrics are left out, provision_collector_success is 0 for it, and the
reason is returned. Catalogues are read as the backup role, which may see every table's statistics. Tables are read as
their owner: a query of a table can run code of its owner (a cast, an operator, a domain), whose own rights are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from provision import system
from provision.database import Connection, connect_pinned
from provision.errors import ProvisionError
from provision.host.backup import drill
from provision.host.deadline import ended
from provision.host.metrics import backup, certificates, cluster, database, pooler, statements, tenants
from provision.host.metrics.exposition import Metric, render
from provision.host.pooler import console
from provision.host.queries import snapshots
from provision.host.queries import statements as queries
from provision.plan import load
from provision.plan.schema import Plan

APPLICATION = "provision metrics"
OWNER_S = 15
"""Longest time for the owner's tables in seconds: the owner's code can catch a statement_timeout, and run on."""


@dataclass(frozen=True)
class Collected:
    """The metrics, the text of a .prom file, and a reason for each source that failed."""

    metrics: tuple[Metric, ...]
    text: str
    failures: tuple[str, ...]

    def facts(self) -> list[dict[str, object]]:
        """Return one object per sample: name, labels, value."""
        return [
            {"name": each.name, "labels": dict(labels), "value": value}
            for each in self.metrics
            for labels, value in each.samples
        ]


def collect() -> Collected:
    """Read backups, certificates, database, tenants, pooler and cluster. Raises HostError on a host without a plan."""
    plan = load.load()
    sources: dict[str, Callable[[], list[Metric]]] = {
        "backup": lambda: backup.metrics(
            plan.backup, system.evidence("backup"), system.evidence("drill"), system.evidence(drill.evidence(2))
        ),
        "certificates": certificates.metrics,
        **{name: partial(_catalogue, plan, read) for name, read in database.CATALOGUE.items()},
        "tables": lambda: _tables(plan),
    }
    if plan.fleet is None:  # whose tenants are on other hosts
        files = Path(plan.migrations.directory)
        sources["tenants"] = lambda: _catalogue(plan, lambda session: tenants.read(session, files))
    if queries.EXTENSION in plan.access.extensions:
        sources["statements"] = lambda: _statements(plan)
    if plan.pooler.enabled:
        sources["pooler"] = lambda: pooler.metrics(*console.statistics())
    if plan.server.patroni:
        sources["cluster"] = lambda: cluster.read(plan)
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
    return Collected(tuple(found), render(found), tuple(failures))


def _catalogue(plan: Plan, read: Callable[[Connection], list[Metric]]) -> list[Metric]:
    with _session(plan, plan.access.backup) as session:
        return read(session)


def _tables(plan: Plan) -> list[Metric]:
    url = plan.server.url(plan.access.database, plan.access.owner)
    with _session(plan, plan.access.owner) as session, ended(url, session, OWNER_S, application=APPLICATION):
        session.execute("SET default_transaction_read_only = on")
        return database.tables(session, plan.maintenance)


def _statements(plan: Plan) -> list[Metric]:
    """Read pg_stat_statements, and keep a snapshot for comparisons."""
    with _session(plan, plan.access.backup) as session:
        reading = queries.read(session)
    snapshots.keep(reading)
    return statements.metrics(reading)


def _session(plan: Plan, role: str) -> Connection:
    url = plan.server.url(plan.access.database, role)
    return connect_pinned(
        url,
        application=APPLICATION,
        statement_timeout_ms=database.STATEMENT_TIMEOUT_MS,
        lock_timeout_ms=database.LOCK_TIMEOUT_MS,
    )
