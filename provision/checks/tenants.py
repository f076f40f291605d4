"""Tenants: their schemas, their versions and their sizes. Read-only; runs no code of a tenant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from provision.checks.finding import Severity
from provision.checks.registry import Row, Scope, check
from provision.database import Connection
from provision.errors import ProvisionError, some
from provision.host.backup import show
from provision.host.migrate.settings import Settings
from provision.host.tenants import catalog, migrations, statistics
from provision.plan import schema

"""Tenants that one finding names."""
NEARLY = 0.8
"""Share of the lock table that one dump may take."""
_TABLES = """
SELECT n.nspname::text, count(*)::int FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S', 'v', 'm') AND n.nspname !~ '^(pg_|information_schema$)' GROUP BY 1 ORDER BY 2 DESC, 1
"""
_LOCKS = """
SELECT current_setting('max_locks_per_transaction')::int
    * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int)
"""


@check(
    "tenant-schema",
    scope=Scope.SERVER,
    area="tenants",
    severity=Severity.CRITICAL,
    expected="a schema with the name of each tenant, owned by it",
    why="the tenant's application finds no tables",
)
def schemas(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report tenants whose schema is missing or belongs to another role."""
    del plan
    for each in catalog.known(session):
        if not each.sound:
            state = "belongs to another role" if each.schema else "does not exist"
            yield f"the schema of tenant {each.name} {state}", f"provision tenant add {each.name}"


@check(
    "tenant-migrations",
    scope=Scope.SERVER,
    area="tenants",
    expected="every tenant at the newest version, clean",
    why="the application may need the newer schema",
    fix="provision migrate up --all-tenants",
)
def versions(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report tenants that are behind, dirty or unreadable."""
    if not Path(plan.migrations.directory).is_dir() or not catalog.known(session):
        return
    try:
        found = migrations.versions(session, Settings("", Path(plan.migrations.directory)))
    except ProvisionError:
        return  # reported by migrations-unreadable
    behind = [each.name for each in found if each.state is not None and not each.state.dirty and each.pending]
    if behind:
        yield f"{len(behind)} tenants have pending migrations: {some(behind)}"
    for each in found:
        if each.state is not None and each.state.dirty:
            status = f"provision migrate status --tenant {each.name}  # docs/migration-is-dirty.md"
            yield f"the version of tenant {each.name} is dirty", status, Severity.CRITICAL
        elif each.why and not each.why.startswith(migrations.UNSOUND):  # reported by tenant-schema
            yield f"the version of tenant {each.name} cannot be read: {each.why}", "provision tenant list"


@check(
    "tenant-size",
    scope=Scope.SERVER,
    area="tenants",
    expected="tenants within database_tenants.size_mb, or the profile's tenant_size_mb",
    why="the tenant takes disk space and memory from the others",
)
def sizes(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report tenants that outgrow their limit."""
    limits = {each.name: each.size_mb for each in plan.access.tenants}
    if not any(limits.values()) and not plan.access.tenant_limits.size_mb:
        return
    for each in statistics.read(session):
        limit = limits.get(each.name, plan.access.tenant_limits.size_mb)
        if limit and each.size > limit * 2**20:
            fix = (
                f"provision tenant show {each.name}  # shorten its retention, raise size_mb, or move it to another host"
            )
            yield f"tenant {each.name} has {show.size(each.size)}, its limit is {limit} MB", fix


@check(
    "tenant-locks",
    scope=Scope.SERVER,
    area="tenants",
    expected="a lock table with room for every table of the database",
    why="a dump locks all tables at once, and would fail with: out of shared memory",
    tags="postgresql",
)
def locks(plan: schema.Plan, session: Connection) -> Iterator[Row]:
    """Report more tables than a dump can lock (manual, max_locks_per_transaction)."""
    del plan
    if not catalog.known(session):
        return
    (capacity,) = session.execute(_LOCKS.encode()).fetchone() or (0,)
    tables = {str(name): int(str(number)) for name, number in session.execute(_TABLES.encode())}
    if seen := shortage(tables, int(str(capacity))):
        settings = "{site}  # first raise max_locks_per_transaction in postgresql_settings, which needs a restart"
        yield seen, settings


def shortage(tables: Mapping[str, int], capacity: int) -> str:
    """Describe a shortage of locks: `tables` by schema, the most first, and the locks that fit. Pure."""
    total = sum(tables.values())
    if total <= NEARLY * capacity:
        return ""
    first, number = next(iter(tables.items()))
    return f"{total} tables, views and sequences, {capacity} locks; most are in schema {first}: {number}"
