"""One session that may migrate: direct, on a primary, with both locks held and the same settings for every file.

Does IO. Between files the role and all settings go back to what they were, and the locks are verified, for a file
may change all of them.
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
    describe,
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

ORPHAN_CHECK_MS = 1000
"""How often the server looks whether its client is still there: what a killed runner left ends, with its locks."""


@dataclass(frozen=True)
class Check:
    """What a file left of the run: were both locks held without a gap, and what does the version table say now?"""

    locked: bool
    state: State | None
    """None when the table is gone."""


class Locked:
    """A connection and its ledger, with both migration locks held."""

    def __init__(self, connection: Connection, ledger: Ledger, settings: Settings) -> None:
        """Use `locked()`, which makes sure of it all."""
        self.connection, self.ledger, self._where = connection, ledger, describe(settings.url)
        self._reset = _reset_message(connection, settings).as_bytes(connection)
        look = sql.SQL("SELECT * FROM ({}) l LEFT JOIN ({}) v ON true").format(locks_held(ledger.keys), ledger.query)
        self._reset_and_look = b"%b; %b" % (self._reset, look.as_bytes(connection))
        self._guard = (
            b"SELECT 1 / ((%b) AND (SELECT count(*) = 1 AND bool_and(version = %%d AND %%b) FROM %b))::int"
            % (
                locks_held(ledger.keys).as_bytes(connection),
                ledger.name.encode().replace(b"%", b"%%"),
            )
        )

    def reset(self) -> None:
        """Give the session back its role and settings."""
        send_message(self.connection, self._reset)

    def secure(self) -> Check:
        """Reset, and look at what a file may have done to the run; a lock that was lost is taken again.

        Raises DatabaseError when somebody else has it by now.
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
        """Commit the end of one step and the beginning of the next, whatever the version table says."""
        send_message(self.connection, end)
        if begin:
            send_message(self.connection, begin)

    def turn(self, now: State, end: bytes, begin: bytes | None) -> bool:
        """Commit the end of one step and the beginning of the next, in one message, if the run is still ours.

        False, and nothing is written, unless both locks are held and the version table says `now`.
        """
        # The server reads a message with the encoding, and begins a transaction in the mode, that the file left behind.
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
        rows = send_message(self.connection, self._reset_and_look)
        held, version, dirty = rows[0]
        one = len(rows) == 1 and version is not None
        return Check(held == b"t", State(int(version or 0), dirty == b"t") if one else State(NONE, dirty=False))

    def _lock_again(self) -> None:
        if not try_locks(self.connection, self.ledger.keys):
            raise DatabaseError(
                "the migration lock is lost, and another session has it",
                where=self._where,
                seen="a file gave it up (DISCARD ALL, pg_advisory_unlock_all)",
                allowed="files that leave advisory locks alone",
                run="provision migrate status",
            )


@contextmanager
def locked(settings: Settings, waiting: Callable[[float, list[Session]], None]) -> Iterator[Locked]:
    """Open the session, refuse what cannot migrate, and hold both locks for the length of a `with` block."""
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
    """Turn the failure of a statement of our own, not of a file, into a DatabaseError."""
    try:
        yield
    except psycopg.Error as error:
        gone = connection.closed or connection.broken
        raise DatabaseError(
            "the connection to the server is lost" if gone else "the server refused a statement of the runner itself",
            where=describe(url),
            seen=str(error).strip().partition("\n")[0],
            allowed="files that ran are kept; the version table says how far it went",
            run="provision migrate status",
        ) from None


def _reset_message(connection: Connection, settings: Settings) -> sql.Composed:
    wanted = {
        "client_encoding": "UTF8",
        "lock_timeout": f"{math.ceil(settings.lock_timeout_s * 1000)}ms",
        "statement_timeout": f"{math.ceil(settings.statement_timeout_s * 1000)}ms",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
    }
    if connection.info.server_version >= 170000:
        wanted["transaction_timeout"] = "0"
    orphan_check = f"{ORPHAN_CHECK_MS}ms"
    try:
        connection.execute("SELECT set_config('client_connection_check_interval', %s, false)", (orphan_check,))
        wanted["client_connection_check_interval"] = orphan_check
    except psycopg.Error:  # not every operating system can
        pass
    sets = [sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(v)) for name, v in wanted.items()]
    return sql.SQL("; ").join([sql.SQL("RESET SESSION AUTHORIZATION; RESET ALL"), *sets])
