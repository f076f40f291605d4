"""Retention in batches: each batch is one statement in its own transaction, with a time limit. Does IO.

Locked rows are skipped (SKIP LOCKED) and left for the next run, so a batch waits only for rows that reference its own.
The same timeout limits that wait and the whole batch; a batch that exceeds it is rolled back and retried with a quarter
of its rows. No session waits longer than this timeout for a row that a batch has locked.

The table of a rule has a primary key `id`; the action `archive` also needs a column `status`.
"""

from __future__ import annotations

import time

import psycopg
from psycopg import sql

from provision.database import Connection
from provision.errors import DatabaseError
from provision.plan.schema import Maintenance, Retention

AIM = 0.25  # share of the timeout: after a longer batch the next one is smaller
FEWEST = 1
PATIENCE = 20  # failed batches of a single row before the rule fails
WAITED = (
    psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected,
)  # fmt: skip


EXPIRED = Retention("expired sessions", "sessions", "expires_at", "expires_at < {now}", 1, "delete")
"""The sessions that cleanup_expired_sessions() would delete in one transaction. `days` only switches the rule on."""
_ACTIONS = {
    "delete": sql.SQL("DELETE FROM {table} t USING due WHERE t.id = due.id RETURNING due.moment"),
    "archive": sql.SQL("UPDATE {table} t SET status = 'archived' FROM due WHERE t.id = due.id RETURNING due.moment"),
}


def count(connection: Connection, rule: Retention) -> int:
    """Count the rows that are due."""
    row = connection.execute(
        sql.SQL("SELECT count(*) FROM {} WHERE {}").format(sql.Identifier(rule.table), _due(rule, _now(connection)))
    ).fetchone()
    return int(str(row[0])) if row else 0


class Batches:
    """Applies one rule. `rows` counts the rows that were deleted or archived."""

    def __init__(self, connection: Connection, rule: Retention, maintenance: Maintenance) -> None:
        """Fix the time that ages are computed from, so that the run ends."""
        self.connection, self.rule, self.maintenance = connection, rule, maintenance
        self.now = _now(connection)
        self.size, self.from_ = max(FEWEST, maintenance.batch_rows // 8), "-infinity"  # start small and adapt
        self.rows = self.batches = self.given_way = self.failures = 0
        self.longest_ms = 0.0
        limit = f"{maintenance.lock_timeout_ms}ms"
        for name in ("lock_timeout", "statement_timeout"):
            connection.execute("SELECT set_config(%s, %s, false)", (name, limit))

    def take(self) -> bool:
        """Process one batch. False if nothing more is due. Raises DatabaseError if single rows time out repeatedly."""
        begun = time.monotonic()
        try:
            row = self.connection.execute(self._statement()).fetchone()
        except WAITED as error:
            self.given_way += 1
            self.failures += self.size == FEWEST
            if self.failures >= PATIENCE:
                raise DatabaseError(
                    f"the rule {self.rule.name} makes no progress",
                    where=f"table {self.rule.table}", seen=str(error).partition("\n")[0],
                    allowed=f"{self.maintenance.lock_timeout_ms} ms for one row and the rows that reference it",
                    run="SELECT * FROM pg_stat_activity WHERE xact_start < now() - interval '1 minute'",
                ) from None  # fmt: skip
            self.size = max(FEWEST, self.size // 4)
            time.sleep(self.maintenance.lock_timeout_ms / 1000)
            return True
        took = (time.monotonic() - begun) * 1000
        taken, last = (int(str(row[0])), row[1]) if row else (0, None)
        whole = taken == self.size
        self.rows, self.batches, self.failures = self.rows + taken, self.batches + 1, 0
        self.longest_ms = max(self.longest_ms, took)
        if took > self.maintenance.lock_timeout_ms * AIM:
            self.size = max(FEWEST, self.size // 2)
        elif took < self.maintenance.lock_timeout_ms * AIM / 3:
            self.size = min(self.maintenance.batch_rows, self.size * 2)
        if whole:
            self.from_ = str(last)
            time.sleep(took / 1000)  # leave half of the time to the application
        return whole

    def _statement(self) -> sql.Composed:
        table, column = sql.Identifier(self.rule.table), sql.Identifier(self.rule.column)
        return sql.SQL(
            "WITH due AS MATERIALIZED (SELECT id, {column} AS moment FROM {table} WHERE {due} AND {column} >= {from_}"
            " ORDER BY {column} LIMIT {size} FOR UPDATE SKIP LOCKED), done AS ({action})"
            " SELECT count(*), max(moment)::text FROM done"
        ).format(
            column=column, table=table, due=_due(self.rule, self.now), from_=sql.Literal(self.from_),
            size=sql.Literal(self.size), action=_ACTIONS[self.rule.action].format(table=table),
        )  # fmt: skip


def _now(connection: Connection) -> str:
    row = connection.execute("SELECT now()::text").fetchone()
    return str(row[0]) if row else ""


def _due(rule: Retention, now: str) -> sql.Composed:
    moment = sql.SQL("{}::timestamptz").format(sql.Literal(now))
    cutoff = sql.SQL("({} - {} * interval '1 day')").format(moment, sql.Literal(rule.days))
    return sql.SQL(rule.due).format(now=moment, cutoff=cutoff)
