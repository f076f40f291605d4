"""The figures of one very moment: counts and checksums of every table, taken beside a named restore point.

Does IO. How both are the same moment: the tables are locked in SHARE mode (readers go on, writers wait, for no longer
than the lock timeout and a few milliseconds), the restore point is written into WAL, a second session takes its
snapshot, and the lock is released. Whatever that snapshot sees is what a recovery to the restore point brings back,
byte for byte.
"""

from __future__ import annotations

from typing import Any

from provision.database import Connection, connect_pinned
from provision.errors import DatabaseError

LOCK_TIMEOUT_MS = 3000  # how long writers may queue behind us when a long transaction holds a table
LOCK_TRIES = 5
# Each row as the server would send it in binary, hashed, and the hashes added up: neither order nor memory matters.
# The alias is a name that no column has: a column's name would win over it.
_FIGURES = """
SELECT count(*),
  coalesce(sum(('x' || left(encode(sha256(record_send("its row")), 'hex'), 15))::bit(60)::bigint), 0)::text
FROM {} AS "its row"
"""
# Neither temporary tables, which other sessions may not touch, nor unlogged ones, which no recovery brings back.
_TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1
"""


def take(url: str, point: str) -> dict[str, Any]:
    """Make the restore point `point` and give the figures of that moment. Raises DatabaseError."""
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
                        "no moment could be found at which the tables could be locked for a blink",
                        where=url, seen=str(error).strip(),
                        allowed=f"{LOCK_TRIES} tries of {LOCK_TIMEOUT_MS} ms each, in SHARE mode",
                        run="SELECT pid, query FROM pg_stat_activity WHERE xact_start < now() - interval '1 minute'",
                    ) from None  # fmt: skip
        found = {"point": point, "lsn": lsn, **read(reader)}
        reader.execute("COMMIT")
        return found


def _freeze(locker: Connection, reader: Connection, point: str) -> str:
    tables = [str(row[0]) for row in locker.execute(_TABLES)]
    if tables:
        locker.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE MODE")  # quoted by the server itself
    row = locker.execute("SELECT pg_create_restore_point(%s)::text", (point,)).fetchone()
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    reader.execute("SELECT 1")
    locker.commit()
    assert row is not None  # noqa: S101 - the function gives a row or raises
    return str(row[0])


def read(connection: Connection) -> dict[str, Any]:
    """Give every table's count and checksum as this session sees them, and the extensions with their versions."""
    tables = {}
    for (name,) in connection.execute(_TABLES).fetchall():
        try:
            row = connection.execute(_FIGURES.format(name)).fetchone()  # quoted by the server
        except Exception as error:
            raise DatabaseError("a table cannot be read whole", where=str(name), seen=str(error).strip()) from None
        assert row is not None  # noqa: S101 - an aggregate gives a row
        tables[str(name)] = {"rows": row[0], "checksum": row[1]}
    found = connection.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1")
    extensions = {str(name): str(version) for name, version in found}
    return {"tables": tables, "extensions": extensions}


def differences(wanted: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """Say in what two sets of figures differ; [] when they are the same."""
    found = []
    for kind in ("tables", "extensions"):
        for name in sorted(set(wanted[kind]) | set(seen[kind])):
            before, after = wanted[kind].get(name), seen[kind].get(name)
            if before != after:
                found.append(f"{name}: {before or 'not there'} when it was taken, {after or 'not there'} restored")
    return found
