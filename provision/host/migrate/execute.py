"""Run the bytes of one file as one message, as golang-migrate does, and say exactly what came of it. Does IO.

Several statements in one message are one implicit transaction, unless the file itself begins and commits. Nothing
is added to the text, no parameters, nothing prepared. The client stays awake while the server works: it calls back
a few times a second, and the callback may ask for the statement to be cancelled.
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
"""Seconds between two callbacks: quick enough for Ctrl-C, cheap enough for hours."""

CANCEL_AGAIN_S = 1.0
"""A request to cancel that reaches the server between two statements is lost, so it is repeated."""

RETRIABLE = {"55P03": "lock timeout", "40P01": "deadlock"}
"""SQLSTATEs after which the same file may succeed, when nothing of it was kept."""

CANCELLED = "57014"

_SUCCESS = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.EMPTY_QUERY, ExecStatus.SINGLE_TUPLE)
_COPY_FAILED = b"a migration has no client to copy from, use INSERT"


@dataclass(frozen=True)
class ServerError:
    """What the server said; `position` counts characters of the message from 1, and is None where it has none."""

    sqlstate: str
    message: str
    detail: str = ""
    hint: str = ""
    context: str = ""
    position: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of one message: how many statements succeeded, the transactions they ended, the error if any."""

    done: int = 0
    commits: int = 0
    rollbacks: int = 0
    error: ServerError | None = None
    lost: bool = False
    """The connection broke: whether anything was kept is unknown."""
    open: bool = False
    """A transaction was left open; it has been rolled back."""
    copied: bool = False
    """The message wanted data from the client, or sent it some."""


def send(connection: Connection, body: bytes, tick: Callable[[], bool], *, more: bool = False) -> Outcome:
    """Run one message to its end. While `tick` answers True the server is asked to cancel it.

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
    """Run each statement as a message of its own (x-multi-statement); also say where the last one began and ended."""
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
    """Pass on the wish to cancel, not more often than is useful."""

    def __init__(self, connection: Connection, wanted: Callable[[], bool]) -> None:
        self._connection, self._wanted = connection, wanted
        self._again_at = self._tick_at = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._tick_at:
            return
        self._tick_at = now + TICK_S
        if self._wanted() and now >= self._again_at:
            self._again_at = now + CANCEL_AGAIN_S
            with suppress(psycopg.Error):  # the request takes a connection of its own, and may fail without harm
                self._connection.cancel()


def _next(connection: Connection, cancel: Callable[[], None]) -> PGresult | None:
    pgconn = connection.pgconn
    unsent = pgconn.flush()  # psycopg's connections do not block: a large file leaves in pieces
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
