"""Run the content of one file as one simple-query message, as golang-migrate does, and report the outcome. Does IO.

Several statements in one message form one implicit transaction, unless the file contains BEGIN and COMMIT. The text is
sent unchanged, without parameters or prepared statements. While the server works, a callback runs several times a
second and can request cancellation of the statement.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from provision.database import Connection
from provision.host.migrate.sql import statements

TICK_S = 0.1
"""Seconds between two callbacks: responsive to Ctrl-C, and cheap over hours."""

CANCEL_AGAIN_S = 1.0
"""Seconds between cancel requests: one that arrives between two statements has no effect, so it is repeated."""

RETRIABLE = {"55P03": "lock timeout", "40P01": "deadlock"}
"""SQLSTATEs after which the file may succeed on a retry if it was rolled back completely."""


_SUCCESS = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY, ExecStatus.SINGLE_TUPLE)
_COPY_FAILED = b"COPY FROM STDIN is not supported in migrations, use INSERT"


@dataclass(frozen=True)
class ServerError:
    """An error from the server. `position` is in characters of the message, from 1; None if not reported."""

    sqlstate: str
    message: str
    detail: str = ""
    hint: str = ""
    context: str = ""
    position: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Outcome of one message: number of successful statements, commits and rollbacks, and the error if any."""

    done: int = 0
    commits: int = 0
    rollbacks: int = 0
    error: ServerError | None = None
    lost: bool = False
    """The connection broke: it is unknown whether anything was committed."""
    open: bool = False
    """The message left a transaction open; it was rolled back."""
    copied: bool = False
    """The message contained COPY FROM STDIN or COPY TO STDOUT."""


def send(connection: Connection, body: bytes, tick: Callable[[], bool], *, more: bool = False) -> Outcome:
    """Run one message to its end, and cancel it if `tick` returns True.

    A transaction that the message leaves open is rolled back, unless `more` messages of the same file follow.
    """
    pgconn = connection.pgconn
    done = commits = rollbacks = 0
    error: ServerError | None = None
    copied = False
    try:
        pgconn.send_query(body)
        cancel = _Canceller(connection, tick)
        while result := _next(connection, cancel):
            if result.status in _SUCCESS:
                done += 1
                tag = result.command_status or b""
                commits += tag in (b"COMMIT", b"PREPARE TRANSACTION")
                rollbacks += tag == b"ROLLBACK"
            elif result.status == ExecStatus.FATAL_ERROR:
                error = _read_error(result)
            elif result.status == ExecStatus.COPY_IN:
                copied = True
                pgconn.put_copy_end(_COPY_FAILED)
            elif result.status == ExecStatus.COPY_OUT:
                copied = True
                while pgconn.get_copy_data(0)[0] > 0:
                    pass
            result.clear()
    except psycopg.Error as failure:
        error = error or ServerError("08006", str(failure).strip())
    if pgconn.status == ConnStatus.BAD:
        error = error or ServerError("08006", "connection lost")
        return Outcome(done, commits, rollbacks, error, lost=True, copied=copied)
    left_open = pgconn.transaction_status != TransactionStatus.IDLE
    if left_open and (error or not more):
        connection.execute("ROLLBACK")
    return Outcome(done, commits, rollbacks, error, open=left_open, copied=copied)


def send_each(connection: Connection, body: bytes, tick: Callable[[], bool]) -> tuple[Outcome, int, int]:
    """Run each statement as a separate message (x-multi-statement).

    Returns the outcome, and the byte offsets of the start and end of the last statement that was sent.
    """
    total = Outcome()
    start = end = 0
    for statement in statements(body):
        start, end = statement.start, statement.end
        came = send(connection, body[start:end], tick, more=True)
        alone = came.error is None and not came.open
        total = replace(
            came,
            done=total.done + came.done,
            commits=total.commits + alone,
            rollbacks=total.rollbacks + came.rollbacks,
        )
        if came.error:
            return total, start, end
    if total.open:
        connection.execute("ROLLBACK")
    return total, start, end


class _Canceller:
    """Forward cancel requests at a limited rate."""

    def __init__(self, connection: Connection, requested: Callable[[], bool]) -> None:
        self._connection, self._requested = connection, requested
        self._again_at = self._tick_at = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._tick_at:
            return
        self._tick_at = now + TICK_S
        if self._requested() and now >= self._again_at:
            self._again_at = now + CANCEL_AGAIN_S
            with suppress(psycopg.Error):  # the request uses its own connection and may fail without harm
                self._connection.cancel()


def _next(connection: Connection, cancel: Callable[[], None]) -> PGresult | None:
    pgconn = connection.pgconn
    unsent = pgconn.flush()  # psycopg's connections are non-blocking: a large file is sent in parts
    while unsent or pgconn.is_busy():
        ready, _, _ = select.select([pgconn.socket], [pgconn.socket] if unsent else [], [], TICK_S)
        if ready:
            pgconn.consume_input()
        if unsent:
            unsent = pgconn.flush()
        cancel()
    return pgconn.get_result()


def _read_error(result: PGresult) -> ServerError:
    def text(field: DiagnosticField) -> str:
        return (result.error_field(field) or b"").decode("utf-8", "replace")

    position = text(DiagnosticField.STATEMENT_POSITION)
    return ServerError(
        text(DiagnosticField.SQLSTATE) or "08006",
        text(DiagnosticField.MESSAGE_PRIMARY) or result.error_message.decode("utf-8", "replace").strip(),
        text(DiagnosticField.MESSAGE_DETAIL),
        text(DiagnosticField.MESSAGE_HINT),
        text(DiagnosticField.CONTEXT),
        int(position) if position else None,
    )
