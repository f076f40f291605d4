"""Reference counts: row count and checksum of every table at a named restore point.

Does IO. Counts and restore point describe the same state: all tables are locked in SHARE mode (readers continue,
writers wait for at most the lock timeout and a few milliseconds), the restore point is written to WAL, a second session
takes a snapshot, and the lock is released. Recovery to the restore point restores exactly what that snapshot sees.
"""

from __future__ import annotations

from typing import Any

from provision.database import Connection, connect_pinned
from provision.errors import DatabaseError

LOCK_TIMEOUT_MS = 3000  # how long writers may queue behind the lock request if a long transaction holds a table
LOCK_TRIES = 5
# The hash of each row's binary form, summed: independent of row order, constant in memory. `ROW(t.*)` is the table
# whatever its columns are called; `record_send(t)` would take a column t. Only built-in functions run and the send
# functions of types, which only a superuser makes.
_COUNT = """
SELECT count(*),
  coalesce(sum(('x' || left(encode(sha256(record_send(ROW(t.*))), 'hex'), 15))::bit(60)::bigint), 0)::text
FROM {} AS t
"""
# No temporary tables (of other sessions) and no unlogged ones (not recovered).
_TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1
"""


def take(url: str, point: str) -> dict[str, Any]:
    """Create the restore point `point` and return the reference counts of that moment. Raises DatabaseError."""
    with (
        connect_pinned(
            url, application="provision backup", autocommit=False, lock_timeout_ms=LOCK_TIMEOUT_MS
        ) as locker,
        connect_pinned(url, application="provision backup") as reader,
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
                    raise DatabaseError(
                        "the tables could not be locked for the reference counts",
                        where=url, seen=str(error).strip(),
                        allowed=f"SHARE locks within {LOCK_TRIES} attempts of {LOCK_TIMEOUT_MS} ms",
                        run="SELECT pid, query FROM pg_stat_activity WHERE xact_start < now() - interval '1 minute'",
                    ) from None  # fmt: skip
        found = {"point": point, "lsn": lsn, **read(reader)}
        reader.execute("COMMIT")
        return found


def _freeze(locker: Connection, reader: Connection, point: str) -> str:
    tables = [str(row[0]) for row in locker.execute(_TABLES)]
    if tables:
        locker.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE MODE")  # quoted by the server
    row = locker.execute("SELECT pg_create_restore_point(%s)::text", (point,)).fetchone()
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    reader.execute("SELECT 1")
    locker.commit()
    assert row is not None  # noqa: S101 - the function returns a row or raises
    return str(row[0])


def read(connection: Connection) -> dict[str, Any]:
    """Return count and checksum of every table in this session's snapshot, and the extensions with versions."""
    tables = {}
    for (name,) in connection.execute(_TABLES).fetchall():
        try:
            row = connection.execute(_COUNT.format(name)).fetchone()  # quoted by the server
        except Exception as error:
            raise DatabaseError("a table cannot be read", where=str(name), seen=str(error).strip()) from None
        assert row is not None  # noqa: S101 - an aggregate returns a row
        tables[str(name)] = {"rows": row[0], "checksum": row[1]}
    found = connection.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1")
    extensions = {str(name): str(version) for name, version in found}
    return {"tables": tables, "extensions": extensions}


def differences(expected: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """List the differences between two sets of reference counts."""
    found = []
    for kind in ("tables", "extensions"):
        for name in sorted(set(expected[kind]) | set(seen[kind])):
            before, after = expected[kind].get(name), seen[kind].get(name)
            if before != after:
                found.append(f"{name}: {before or 'missing'} in the backup, {after or 'missing'} after the restore")
    return found
