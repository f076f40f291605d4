"""What runs out on a server: connections, and WAL that a forgotten replication slot keeps. Read-only.

Runs in a superuser session, which has reserved connections: it reports exhausted connections from inside.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from provision.checks.finding import Severity, psql
from provision.checks.registry import Row, Scope, check
from provision.database import Connection
from provision.host.upgrade import replication
from provision.plan.schema import Plan

NEARLY_USED = 0.9
"""Share of the connections at which applications are about to be refused."""
HELD_MB = 256
"""WAL kept for a slot without a consumer: far more than a restart of the consumer needs."""
LIMIT_SHARE = 4
"""A quarter of max_slot_wal_keep_size, where that is less."""
FORGOTTEN_S = 3600

_USED = """
SELECT count(*), current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
  - coalesce(current_setting('reserved_connections', true), '0')::int
FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
WHERE a.backend_type = 'client backend' AND NOT r.rolsuper
"""
_BY_ROLE = """
SELECT r.rolname::text, count(*), count(*) FILTER (WHERE a.state LIKE 'idle%'), r.rolconnlimit
FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid
WHERE a.backend_type = 'client backend' AND NOT r.rolsuper GROUP BY r.rolname, r.rolconnlimit ORDER BY 2 DESC, 1
"""
# PostgreSQL 17 added inactive_since.
_SLOTS = """
SELECT s.slot_name::text, s.slot_type, coalesce(s.database::text, ''), coalesce(s.wal_status, ''), (coalesce(
    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                    s.restart_lsn), 0) / 1048576)::int,
  coalesce(extract(epoch FROM now() - (to_jsonb(s) ->> 'inactive_since')::timestamptz), 0)::int,
  (SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size')
FROM pg_replication_slots s WHERE NOT s.active AND NOT s.temporary ORDER BY 5 DESC, 1
"""


@check(
    "connections",
    Scope.SERVER,
    area="connection",
    severity=Severity.CRITICAL,
    expected="free connections for every role",
    why="further sessions are refused",
)
def connections(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report a server or a role that has used its connections; the command ends the idle sessions of the role."""
    del plan
    ((used, usable),) = session.execute(_USED).fetchall()
    roles = session.execute(_BY_ROLE).fetchall()
    full = [row for row in roles if 0 < int(str(row[3])) <= int(str(row[1]))]
    for name, count, idle, limit in full:
        yield f"role {name} uses {count} of its {limit} connections, {idle} of them idle", _end(session, str(name))
    if int(str(used)) >= NEARLY_USED * int(str(usable)) and roles and not full:
        name, count, idle, _limit = roles[0]
        severity = Severity.CRITICAL if int(str(used)) >= int(str(usable)) else Severity.WARNING
        seen = f"{used} of {usable} connections are in use; role {name} has {count}, {idle} of them idle"
        yield seen, _end(session, str(name)), severity


def _end(session: Connection, role: str) -> str:
    end = sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {} AND state LIKE 'idle%'")
    return f"{psql('postgres', end.format(sql.Literal(role)).as_string(session))}  # then docs/connections-run-out.md"


@check(
    "replication-slots",
    Scope.SERVER,
    area="storage",
    expected="a consumer for each replication slot",
    why="the server keeps WAL for the slot until the disk or the limit is full",
)
def slots(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report physical and logical slots without a consumer, with the WAL that they keep."""
    del plan
    for name, kind, database, status, held, idle_s, limit in session.execute(_SLOTS).fetchall():
        held_mb, limit_mb = int(str(held)), int(str(limit))
        bounded = limit_mb >= 0
        alarm = min(HELD_MB, limit_mb // LIMIT_SHARE) if bounded else HELD_MB
        if not (status in ("unreserved", "lost") or held_mb >= alarm or int(str(idle_s)) >= FORGOTTEN_S):
            continue
        where = f" of database {database}" if database else ""
        bound = f"the limit is {limit_mb} MB (max_slot_wal_keep_size)" if bounded else "without a limit"
        kept = "lost its WAL, so its consumer must be rebuilt" if status == "lost" else f"keeps {held_mb} MB of WAL"
        drop = sql.SQL("SELECT pg_drop_replication_slot({})").format(sql.Literal(str(name))).as_string(session)
        half = bounded and held_mb * 2 >= limit_mb
        fix = f"{psql('postgres', drop)}  # if its consumer is gone for good: docs/a-slot-keeps-wal.md"
        if str(name).startswith(f"{replication.NAME}_"):
            fix = "# start the old server of the upgrade, or end the way back: docs/move-to-another-major.md"
        yield (
            f"{kind} slot {name}{where} has no consumer and {kept}; {bound}",
            fix,
            Severity.CRITICAL if half or (not bounded and held_mb >= HELD_MB) else Severity.WARNING,
        )
