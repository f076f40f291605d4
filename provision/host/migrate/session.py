"""The migration session: direct, on a primary, holding both locks, with the same settings for every file. Does IO.

Between files it resets the role and all settings and verifies the locks, because a file can change all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from provision.database import (
    Connection,
    Session,
    connect,
    hold_locks,
    locks_held,
    refuse_pooler,
    refuse_read_only,
    send_message,
    try_locks,
)
from provision.errors import DatabaseError
from provision.host.migrate.files import NONE
from provision.host.migrate.ledger import Ledger, State
from provision.host.migrate.settings import Settings
from provision.urls import describe, read

OWN = {"client_encoding", "lock_timeout", "statement_timeout"}
"""Session settings that the URL does not set directly: `from_url` reads its time-outs."""

ORPHAN_CHECK_MS = 1000
"""How often the server checks that its client is connected, so that the session of a killed runner ends."""


@dataclass(frozen=True)
class Check:
    """The session after a file: whether both locks are still held, and the content of the version table."""

    locked: bool
    state: State | None
    """None if the table does not exist."""


class Locked:
    """A connection and its ledger, with both migration locks held."""

    def __init__(self, connection: Connection, ledger: Ledger, settings: Settings) -> None:
        """Use `locked()`, which checks the connection and takes the locks."""
        self.connection, self.ledger, self._where = connection, ledger, describe(settings.url)
        self._reset = _reset_message(connection, settings).as_bytes(connection)
        # Apart from the version table: where that is distributed, Citus would look for the locks on another server.
        held = locks_held(ledger.keys)
        self._reset_and_held = b"%b; %b" % (self._reset, held.as_bytes(connection))
        self._guard = (
            b"SELECT 1 / (%b)::int; SELECT 1 / (count(*) = 1 AND bool_and(version = %%d AND %%b))::int FROM %b"
            % (
                b"(%b)" % held.as_bytes(connection),
                ledger.name.encode().replace(b"%", b"%%"),
            )
        )

    def reset(self) -> None:
        """Restore the role and settings of the session."""
        send_message(self.connection, self._reset)

    def secure(self) -> Check:
        """Reset the session and check the locks and the version table; take lost locks again.

        Raises DatabaseError if another session holds them.
        """
        try:
            found = self._look()
        except psycopg.errors.UndefinedTable:
            self.reset()
            held = self.connection.execute(locks_held(self.ledger.keys)).fetchone()
            found = Check(held == (True,), None)
        if not found.locked:
            self._lock_again()
        return found

    def write(self, end: bytes, begin: bytes | None) -> None:
        """Commit the end of one step and the start of the next, regardless of the version table."""
        send_message(self.connection, end)
        if begin:
            send_message(self.connection, begin)

    def turn(self, now: State, end: bytes, begin: bytes | None) -> bool:
        """Commit the end of one step and the start of the next in one message, if the session is intact.

        Writes nothing and returns False unless both locks are held and the version table contains `now`.
        """
        # The file may have changed the encoding of this message and the access mode of its transaction.
        status = self.connection.info.parameter_status
        if status("client_encoding") != "UTF8" or status("default_transaction_read_only") == "on":
            self.reset()
        guard = self._guard % (now.version, b"dirty" if now.dirty else b"NOT dirty")
        message = b"BEGIN; %b; %b; %b; COMMIT" % (self._reset, guard, end)
        try:
            send_message(self.connection, message + (b"; BEGIN; %b; COMMIT" % begin if begin else b""))
        except (psycopg.errors.DivisionByZero, psycopg.errors.UndefinedTable):
            self.connection.execute("ROLLBACK")
            return False
        return True

    def _look(self) -> Check:
        ((held,),) = send_message(self.connection, self._reset_and_held)
        rows = send_message(self.connection, self.ledger.query.as_bytes(self.connection))
        one = len(rows) == 1 and rows[0][0] is not None
        return Check(held == b"t", State(int(rows[0][0] or 0), rows[0][1] == b"t") if one else State(NONE, dirty=False))

    def _lock_again(self) -> None:
        if not try_locks(self.connection, self.ledger.keys):
            raise DatabaseError(
                "the migration lock was lost, and another session holds it",
                where=self._where,
                seen="a file released it (DISCARD ALL, pg_advisory_unlock_all)",
                allowed="files that do not release advisory locks",
                run="provision migrate status",
            )


@contextmanager
def locked(settings: Settings, waiting: Callable[[float, list[Session]], None]) -> Iterator[Locked]:
    """Open a session, refuse poolers, standbys and missing privileges, and hold both locks in a `with` block."""
    with connect(settings.url, application="provision migrate") as connection, explaining(connection, settings.url):
        refuse_pooler(connection)
        refuse_read_only(connection)
        ledger = Ledger(connection, settings.schema, settings.table)
        ledger.check(write=True)
        session = Locked(connection, ledger, settings)
        session.reset()
        what = f"the migration lock of database {ledger.database}"
        with hold_locks(connection, ledger.keys, wait_s=settings.wait_s, what=what, waiting=waiting):
            yield session


@contextmanager
def explaining(connection: Connection, url: str) -> Iterator[None]:
    """Convert a failure of the runner's own statements to DatabaseError."""
    try:
        yield
    except psycopg.Error as error:
        gone = connection.closed or connection.broken
        raise DatabaseError(
            "lost the connection to the server" if gone else "the server rejected a statement of the runner",
            where=describe(url),
            seen=str(error).strip().partition("\n")[0],
            allowed="completed files stay applied; the version table shows the last one",
            run="provision migrate status",
        ) from None


def _reset_message(connection: Connection, settings: Settings) -> sql.Composed:
    values = {
        "client_encoding": "UTF8",
        "lock_timeout": f"{math.ceil(settings.lock_timeout_s * 1000)}ms",
        "statement_timeout": f"{math.ceil(settings.statement_timeout_s * 1000)}ms",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
    }
    if connection.info.server_version >= 170000:
        values["transaction_timeout"] = "0"
    given = read(settings.url).server.keys() - OWN
    values = {name: value for name, value in values.items() if name not in given}
    orphan_check = f"{ORPHAN_CHECK_MS}ms"
    try:
        connection.execute("SELECT set_config('client_connection_check_interval', %s, false)", (orphan_check,))
        values["client_connection_check_interval"] = orphan_check
    except psycopg.Error:  # not supported on every operating system
        pass
    sets = [sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(v)) for name, v in values.items()]
    return sql.SQL("; ").join([sql.SQL("RESET SESSION AUTHORIZATION; RESET ALL"), *sets])
