"""Reference counts: row count and checksum of every table at a named restore point.

Does IO. Counts and restore point describe the same state: all tables are locked in SHARE mode (readers continue,
writers wait for at most the lock timeout and a few milliseconds), the restore point is written to WAL, a second session
takes a snapshot, and the lock is released. Recovery to the restore point restores exactly what that snapshot sees.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import psycopg

from provision.database import Connection, connect_pinned
from provision.errors import DatabaseError
from provision.host import plain

LOCK_TIMEOUT_MS = 3000  # how long writers may queue behind the lock request if a long transaction holds a table
LOCK_TRIES = 5
READ_WAIT_MS = 60_000
"""How long a table may stay locked against reading, as for pg_dump: its owner could otherwise stop every backup."""
FORM = "copy"
"""How checksums are made (plain.digests). Of figures without it, from version 0.3 and older, only rows are compared."""
_BLOCKERS = """
SELECT format('process %s of %s (%s), in a transaction for %s s', a.pid, a.usename,
    coalesce(nullif(a.application_name, ''), 'no application name'), extract(epoch FROM now() - a.xact_start)::bigint),
    a.pid
FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' AND EXISTS (SELECT FROM pg_locks l
    WHERE l.pid = a.pid AND l.granted AND l.locktype = 'relation' AND l.relation >= 16384
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'ShareLock'))
ORDER BY a.xact_start LIMIT 5
"""
"""Sessions that hold locks on tables that a SHARE lock waits for, the oldest transaction first."""


def take(url: str, point: str) -> dict[str, Any]:
    """Create the restore point `point` and return the reference counts of that moment.

    Raises DatabaseError, with the sessions in the way: every role that may write can hold a transaction open.
    """
    try:
        return _take(url, point)
    except psycopg.Error as error:
        raise DatabaseError(
            "the tables could not be read for the reference counts", where=url, seen=str(error).strip()
        ) from None


def _take(url: str, point: str) -> dict[str, Any]:
    with (
        connect_pinned(
            url, application="provision backup", autocommit=False, lock_timeout_ms=LOCK_TIMEOUT_MS
        ) as locker,
        connect_pinned(url, application="provision backup", lock_timeout_ms=READ_WAIT_MS) as reader,
    ):
        locker.commit()
        for left in reversed(range(LOCK_TRIES)):
            try:
                lsn = _freeze(locker, reader, point)
                break
            except Exception as error:
                locker.rollback()
                reader.execute("ROLLBACK")
                if not left:
                    holders = reader.execute(_BLOCKERS.encode()).fetchall()
                    ends = " ".join(f"SELECT pg_terminate_backend({pid});" for _, pid in holders)
                    raise DatabaseError(
                        "the tables could not be locked for the reference counts",
                        where=url,
                        seen="; ".join([str(error).strip().partition("\n")[0], *(str(text) for text, _ in holders)]),
                        allowed=f"SHARE locks within {LOCK_TRIES} attempts of {LOCK_TIMEOUT_MS} ms",
                        run=f'runuser -u postgres -- psql -XAtc "{ends}"' if ends else "docs/statements-wait.md",
                    ) from None
        found = {"point": point, "lsn": lsn, **read(reader)}
        reader.execute("COMMIT")
        return found


def _freeze(locker: Connection, reader: Connection, point: str) -> str:
    if tables := list(_known(locker)):
        locker.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE MODE")  # quoted by the server
    row = locker.execute("SELECT pg_create_restore_point(%s)::text", (point,)).fetchone()
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    reader.execute("SELECT 1")
    locker.commit()
    assert row is not None  # noqa: S101 - the function returns a row or raises
    return str(row[0])


def read(connection: Connection) -> dict[str, Any]:
    """Return count and checksum of every table in this session's snapshot, and the extensions with versions."""
    known = _known(connection)
    digests = plain.digests(connection, known)
    tables = {name: {"rows": rows, "checksum": str(checksum)} for name, (rows, checksum) in digests.items()}
    found = connection.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1")
    extensions = {str(name): str(version) for name, version in found}
    return {"form": FORM, "tables": tables, "extensions": extensions}


def _known(connection: Connection) -> dict[str, plain.Table]:
    """Return the tables whose rows this server's files hold: no unlogged ones, which are not recovered.

    On a node of a fleet, those of tenants are on the workers, as shards, which Citus hides from programs.
    """
    distributed: set[str] = set()
    if connection.execute("SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL").fetchone() == (True,):
        connection.execute("SET citus.override_table_visibility TO off")
        connection.execute("SET citus.enable_ddl_propagation TO off")  # otherwise Citus refuses to lock a shard
        rows = connection.execute(
            "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_dist_partition p"
            " JOIN pg_class c ON c.oid = p.logicalrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        ).fetchall()
        distributed = {str(row[0]) for row in rows}
    found = plain.tables(connection).items()
    return {name: table for name, table in found if table.permanent and name not in distributed}


def differences(expected: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """List the differences between two sets of reference counts."""
    found = []
    if expected.get("form") != seen.get("form"):
        expected, seen = _rows_alone(expected), _rows_alone(seen)
    for kind in ("tables", "extensions"):
        for name in sorted(set(expected[kind]) | set(seen[kind])):
            before, after = expected[kind].get(name), seen[kind].get(name)
            if before != after:
                found.append(f"{name}: {before or 'missing'} in the backup, {after or 'missing'} after the restore")
    return found


def _rows_alone(figures: dict[str, Any]) -> dict[str, Any]:
    return {**figures, "tables": {name: {"rows": row["rows"]} for name, row in figures["tables"].items()}}


def uncounted(sets: Sequence[Mapping[str, Any]], known: Container[str], now: float, limit_h: float) -> list[str]:
    """Return the alarm if the newest set with reference counts is older than a limit in hours, 0 for none. Pure.

    Every role that may write can prevent the counts; then restore tests compare an older set, or nothing.
    """
    if not limit_h or not sets or sets[-1]["label"] in known:
        return []
    counted = [each["stop"] for each in sets if each["label"] in known]
    age = (now - max(counted, default=sets[0]["stop"])) / 3600
    if age <= limit_h:
        return []
    return [
        f"backups have had no reference counts for {age:.1f} h, {limit_h} h are allowed: a transaction stays open; "
        "`provision backup take --type incr` names it; docs/backups-are-old.md"
    ]
