"""Read pg_stat_statements: normalised statements with their counters, in one Reading. Does IO.

The session may have a role that reads all data, and the database's owner may create functions in it: the function is
called only if it is a member of the extension and belongs to a superuser. It is called instead of the view, because
pinned sessions expand no view (see `pins`). Counters of top-level and nested executions are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from psycopg import sql

from provision.database import Connection, ask
from provision.errors import DatabaseError

EXTENSION = "pg_stat_statements"
BLOCK_MB = 8192 / 2**20
FIX = "ansible-playbook site.yml -i INVENTORY --tags postgresql,database"
_MEMBER = """
SELECT n.nspname
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_roles r ON r.oid = p.proowner
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
WHERE e.extname = 'pg_stat_statements' AND p.proname = 'pg_stat_statements' AND r.rolsuper
"""
_STATEMENTS = """
SELECT s.queryid, coalesce(r.rolname, s.userid::text), coalesce(d.datname, s.dbid::text), max(s.query),
    sum(s.calls)::float8, sum(s.total_exec_time), sum(s.rows)::float8,
    sum(s.shared_blks_hit)::float8, sum(s.shared_blks_read + s.local_blks_read)::float8,
    sum(s.shared_blks_written + s.local_blks_written)::float8,
    sum(s.temp_blks_read + s.temp_blks_written)::float8, sum(s.wal_bytes)::float8
FROM {schema}.pg_stat_statements(true) s
LEFT JOIN pg_roles r ON r.oid = s.userid LEFT JOIN pg_database d ON d.oid = s.dbid
WHERE s.queryid IS NOT NULL GROUP BY 1, 2, 3
"""
_INFO = """
SELECT extract(epoch FROM now())::float8, extract(epoch FROM i.stats_reset)::float8, i.dealloc::float8,
    current_setting('pg_stat_statements.max')::int
FROM {schema}.pg_stat_statements_info() i
"""


@dataclass(frozen=True)
class Counters:
    """What a statement has used since a moment; blocks have 8 KiB, times are milliseconds of execution."""

    calls: float = 0
    total_ms: float = 0
    rows: float = 0
    hit_blocks: float = 0
    read_blocks: float = 0
    written_blocks: float = 0
    temp_blocks: float = 0
    wal_bytes: float = 0

    def minus(self, earlier: Counters) -> Counters:
        """Return the difference to an earlier reading of the same statement."""
        return Counters(*(getattr(self, each.name) - getattr(earlier, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Statement:
    """A normalised statement of one role in one database."""

    query_id: str
    role: str
    database: str
    text: str
    counters: Counters

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it between two readings."""
        return self.query_id, self.role, self.database


@dataclass(frozen=True)
class Reading:
    """All statements at a moment (Unix times). `evicted`: how often statements were dropped for lack of room."""

    at: float
    reset: float
    statements: tuple[Statement, ...]
    evicted: float
    limit: int


def read(session: Connection) -> Reading:
    """Read every statement that the server tracks.

    Raises DatabaseError where the extension is missing or the library is not loaded.
    """
    schema = sql.Identifier(_schema(session))
    try:
        at, reset, evicted, limit = _ask(session, _INFO, schema)[0]
    except DatabaseError as error:
        if "shared_preload_libraries" not in error.seen:
            raise
        raise _absent(session, error.seen, f"{FIX} -e postgresql_restart_allowed=true") from None
    rows = _ask(session, _STATEMENTS, schema)
    statements = tuple(
        Statement(str(query), str(role), str(database), str(text), Counters(*map(float, counters)))
        for query, role, database, text, *counters in rows
    )
    return Reading(float(at), float(reset), statements, float(evicted), int(limit))


def _schema(session: Connection) -> str:
    rows = ask(session, _MEMBER)
    if not rows:
        raise _absent(session, "the extension pg_stat_statements is not installed in it", FIX)
    return str(rows[0][0])


def _absent(session: Connection, seen: str, run: str) -> DatabaseError:
    return DatabaseError(
        "no statement statistics",
        where=f"database {session.info.dbname}",
        seen=seen,
        allowed="pg_stat_statements in database_extensions and among the preloaded libraries, which needs a restart",
        run=run,
    )


def _ask(session: Connection, query: str, schema: sql.Identifier) -> list[Any]:
    return ask(session, sql.SQL(query).format(schema=schema).as_string(session))


def values(counters: Counters) -> list[float]:
    """Return the counters in their order, for a file."""
    return [getattr(counters, each.name) for each in fields(counters)]


def described(counters: Counters) -> Mapping[str, float]:
    """Return the counters by name, in units that people read."""
    return {
        "calls": counters.calls,
        "total_ms": counters.total_ms,
        "mean_ms": counters.total_ms / counters.calls if counters.calls else 0.0,
        "rows": counters.rows,
        "hit_mb": counters.hit_blocks * BLOCK_MB,
        "read_mb": counters.read_blocks * BLOCK_MB,
        "written_mb": counters.written_blocks * BLOCK_MB,
        "temp_mb": counters.temp_blocks * BLOCK_MB,
        "wal_mb": counters.wal_bytes / 2**20,
    }
