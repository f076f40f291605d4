"""Size, rows, vectors, last use and slowest statements of tenants. Reads the server's statistics as the superuser.

Runs no query on a table of a tenant: rows and vectors are the server's estimates. `activity` alone asks the tenant's
own tables, as the tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from provision.database import Connection, connect
from provision.errors import DatabaseError, MigrationError
from provision.host.migrate.directory import Directory
from provision.host.queries import statements
from provision.host.tenants import catalog, login, versions
from provision.plan import tenants
from provision.plan.schema import Plan

LAST_SCAN_SINCE = 160000
"""The first server that records when an index was last read."""
USED_INDEXES = ("agents_pkey", "memories_agent_id_idx", "memories_embedding_idx", "sessions_agent_id_idx")
"""Indexes that applications read, and that maintenance and dumps do not."""
SLOWEST = 5
TIMEOUT_MS = 10_000
_SIZES = """
SELECT n.nspname::text,
    coalesce(sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relkind IN ('r', 'm')), 0)::bigint,
    count(*) FILTER (WHERE c.relkind IN ('r', 'p'))::int,
    coalesce(sum(pg_stat_get_live_tuples(c.oid)) FILTER (WHERE c.relkind = 'r'), 0)::bigint,
    coalesce(max(pg_stat_get_live_tuples(c.oid)) FILTER (WHERE c.relkind = 'r' AND c.relname = 'memories'), 0)::bigint
FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid WHERE n.nspname = ANY(%s) GROUP BY 1
"""
_NULLS = """
SELECT schemaname::text, null_frac::float8 FROM pg_stats
WHERE tablename = 'memories' AND attname = 'embedding' AND schemaname = ANY(%s)
"""
_LAST = """
SELECT schemaname::text, to_char(max(last_idx_scan) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
FROM pg_stat_all_indexes WHERE schemaname = ANY(%s) AND indexrelname = ANY(%s) GROUP BY 1
"""
_SESSIONS = """
SELECT usename::text, count(*)::int FROM pg_stat_activity WHERE usename = ANY(%s) GROUP BY 1
"""


@dataclass(frozen=True)
class Size:
    """Bytes of a tenant, its tables, and estimates of all its rows and of those of its table memories."""

    bytes: int
    tables: int
    rows: int
    memories: int


@dataclass(frozen=True)
class Statistics:
    """One tenant. `rows` and `vectors` are estimates; `last_use` is null before PostgreSQL 16 and where unknown."""

    name: str
    state: str
    """sound, no schema, or foreign schema."""
    version: str
    size: int
    tables: int
    rows: int
    vectors: int
    sessions: int
    last_use: str | None
    group: int | None = None
    """Of a fleet: the group that holds the tenant, None while it is not distributed."""

    def values(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def read(session: Connection, name: str = "") -> list[Statistics]:
    """Return the statistics of every tenant of the session's database, or of one, by name."""
    known = [each for each in catalog.known(session) if name in ("", each.name)]
    every = [each.name for each in known]
    measured, without, used = sizes(session, every), nulls(session, every), sessions(session, every)
    last: dict[str, str | None] = {}
    if session.info.server_version >= LAST_SCAN_SINCE:
        last = {str(name): at for name, at in session.execute(_LAST, (every, list(USED_INDEXES)))}  # type: ignore[misc]
    applied = versions.read(session, [each.name for each in known if each.sound])
    result = [
        Statistics(
            each.name, each.state, str(applied.get(each.name, "")), size.bytes, size.tables, size.rows,
            round(size.memories * (1 - without.get(each.name, 0.0))), used.get(each.name, 0), last.get(each.name),
        )
        for each in known
        for size in [measured.get(each.name, Size(0, 0, 0, 0))]
    ]  # fmt: skip
    return _placed(session, result)


def sizes(session: Connection, names: Sequence[str]) -> dict[str, Size]:
    """Return the sizes of tenants whose schemas exist. Opens every table and index of them, and waits for locks."""
    rows = session.execute(_SIZES, (list(names),)).fetchall()
    return {str(name): Size(*(int(str(value)) for value in values)) for name, *values in rows}


def nulls(session: Connection, names: Sequence[str]) -> dict[str, float]:
    """Return the estimated share of each tenant's memories without a vector; unknown before the first ANALYZE."""
    return {str(name): float(str(part)) for name, part in session.execute(_NULLS, (list(names),))}


def sessions(session: Connection, names: Sequence[str]) -> dict[str, int]:
    """Return the open sessions of each tenant that has some."""
    roles = {role: name for name in names for role in tenants.role_names(name)}
    used: dict[str, int] = {}
    for role, number in session.execute(_SESSIONS, (list(roles),)).fetchall():
        used[roles[str(role)]] = used.get(roles[str(role)], 0) + int(str(number))
    return used


def _placed(session: Connection, found: list[Statistics]) -> list[Statistics]:
    """Replace what the coordinator of a fleet does not know itself: size and rows are those of the tenant's group."""
    if session.execute("SELECT to_regclass('pg_catalog.pg_dist_schema') IS NULL").fetchone() == (True,):
        return found
    from provision.host.fleet import nodes

    places = {each.tenant: each for each in nodes.places(session)}
    return [
        replace(each, group=place.group, size=place.size, rows=place.rows, vectors=place.memories)
        if (place := places.get(each.name))
        else each
        for each in found
    ]


def newest(plan: Plan) -> int | None:
    """Return the newest version of the host's migration files, None without files."""
    try:
        return max(Directory(Path(plan.migrations.directory)).catalogue().versions, default=None)
    except MigrationError:
        return None


def slowest(session: Connection, name: str) -> list[dict[str, Any]]:
    """Return the statements of a tenant with most of the execution time; [] without pg_stat_statements."""
    try:
        reading = statements.read(session)
    except DatabaseError:
        return []
    roles = tenants.role_names(name)
    own = sorted((each for each in reading.statements if each.role in roles), key=lambda each: -each.counters.total_ms)
    return [
        {"role": each.role, "text": " ".join(each.text.split()), **statements.described(each.counters)}
        for each in own[:SLOWEST]
    ]


def activity(plan: Plan, session: Connection, name: str) -> str | None:
    """Return when the tenant's newest activity was recorded (UTC), as its own table says; None without one.

    None on a replica too, where no temporary login can be created.
    """
    query = "SELECT to_char(max(created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM activities"
    try:
        with (
            login.acting(plan, session, name) as acting,
            connect(acting.url, application=login.APPLICATION, statement_timeout_ms=TIMEOUT_MS) as inside,
        ):
            row = inside.execute(query.encode()).fetchone()
    except (psycopg.Error, DatabaseError):  # no such table yet, or a slow one
        return None
    return str(row[0]) if row and row[0] else None
