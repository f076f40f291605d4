"""Metrics of tenants: those of the TOP largest by name, and the sums of all others. Does IO, runs no code of a tenant.

Sizes are those of the last VACUUM or ANALYZE, rows and vectors the server's estimates: no table is opened, so that no
lock is waited for, and a thousand tenants cost one query. Versions are read by COPY. `session` is the backup role's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psycopg

from provision.database import Connection
from provision.errors import DatabaseError, MigrationError
from provision.host.metrics.exposition import Metric
from provision.host.migrate.directory import Directory
from provision.host.migrate.ledger import State
from provision.host.tenants import catalog, statistics, versions

TOP = 50
OTHERS = "all others"
"""Label of the sums; no tenant's name has a space."""
STATES = ("current", "pending", "dirty", "unknown")
_ESTIMATES = """
SELECT r.rolname::text, coalesce(sum(greatest(c.relpages, 0)), 0)::float8 * current_setting('block_size')::int,
    coalesce(sum(pg_stat_get_live_tuples(c.oid)) FILTER (WHERE c.relkind = 'r'), 0)::float8,
    coalesce(sum(pg_stat_get_live_tuples(c.oid)) FILTER (WHERE c.relkind = 'r' AND c.relname = 'memories'), 0)::float8
FROM pg_roles r LEFT JOIN pg_class c ON c.relowner = r.oid WHERE r.rolname = ANY(%s) GROUP BY 1 ORDER BY 2 DESC, 1
"""


def read(session: Connection, directory: Path) -> list[Metric]:
    """Query the tenants of the session's database, and compare their versions with the files of `directory`.

    Raises DatabaseError.
    """
    try:
        known = {each.name: each.sound for each in catalog.known(session)}
        rows = session.execute(_ESTIMATES, (list(known),)).fetchall()
        nulls, used = statistics.nulls(session, list(known)), statistics.sessions(session, list(known))
        applied = versions.read(session, [name for name, sound in known.items() if sound])
    except psycopg.Error as error:
        raise DatabaseError("the tenants cannot be measured", seen=str(error).strip()) from None
    sizes = {str(name): [float(str(value)) for value in values] for name, *values in rows}
    states = {name: applied.get(name, "") for name in known}
    return [*_used(sizes, nulls, used), *_migrated(states, list(sizes)[:TOP], _files(directory))]


def _used(
    sizes: Mapping[str, Sequence[float]], nulls: Mapping[str, float], sessions: Mapping[str, int]
) -> Iterator[Metric]:
    """Make the metrics of size and use. `sizes`: bytes, rows and memories by name, the largest tenant first."""
    vectors = {name: memories * (1 - nulls.get(name, 0.0)) for name, (_, _, memories) in sizes.items()}
    for name, text, values in (
        ("bytes", "Size of a tenant at its last VACUUM or ANALYZE.", {name: each[0] for name, each in sizes.items()}),
        ("rows", "Estimated rows of a tenant.", {name: each[1] for name, each in sizes.items()}),
        ("vectors", "Estimated memories of a tenant that have a vector.", vectors),
        ("sessions", "Open sessions of a tenant.", {name: float(sessions.get(name, 0)) for name in sizes}),
    ):
        samples = _named(list(values.items())[:TOP])
        rest = list(values.values())[TOP:]
        yield Metric(f"provision_tenant_{name}", text, (*samples, *_named([(OTHERS, sum(rest))] if rest else [])))


def _migrated(states: Mapping[str, State | str], top: Sequence[str], files: Collection[int]) -> Iterator[Metric]:
    """Make the metrics of migrations: all tenants by state, and the versions of `top`."""
    read = {name: state for name, state in states.items() if isinstance(state, State)}
    pending = {name: sum(version > state.version for version in files) for name, state in read.items()}
    words = [
        "unknown" if name not in read else "dirty" if read[name].dirty else "pending" if pending[name] else "current"
        for name in states
    ]
    yield Metric(
        "provision_tenants",
        "Tenants by the state of their migrations; unknown: the version cannot be read.",
        tuple(({"state": state}, float(words.count(state))) for state in STATES),
    )
    shown = [name for name in top if name in read]
    yield Metric("provision_tenant_migration_version", "Version of a tenant's schema; -1 before the first migration.",
                 _named([(name, read[name].version) for name in shown]))  # fmt: skip
    yield Metric("provision_tenant_migrations_pending", "Migrations that are not applied to a tenant.",
                 _named([(name, pending[name]) for name in shown]))  # fmt: skip


def _files(directory: Path) -> Collection[int]:
    try:
        return Directory(directory).catalogue().versions
    except MigrationError:
        return ()


def _named(values: Iterable[tuple[str, float]]) -> tuple[tuple[dict[str, str], float], ...]:
    return tuple(({"tenant": name}, float(value)) for name, value in values)
