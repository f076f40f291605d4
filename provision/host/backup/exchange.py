"""Swap a database with the one that a dump was restored into, and clean up after a killed restore.

Does IO as postgres. A journal in /var/lib/provision records the scratch database, and the database that is closed to
connections during the swap, before each step. Databases are identified by their OID, so that a clean-up drops and
reopens only those that the restore created and closed. The old database is renamed, never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from provision import system
from provision.database import Connection
from provision.errors import HostError
from provision.host import scratch
from provision.host.backup import journal
from provision.host.backup.tool import BackupError
from provision.host.scratch import Scratch
from provision.plan import names

JOURNAL = "restore-dump"
BUSY = "another restore of a dump is running on this host"
WAIT_MS = 5000
"""Time limit for sessions of the old database to end."""


@dataclass
class Exchange:
    """One restore of a dump: its session as superuser, and what the journal says about it."""

    session: Connection
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, **facts: Any) -> None:
        """Add facts to the journal; they are on disk when this returns."""
        self.facts |= facts
        system.keep(JOURNAL, self.facts)

    def create(self, name: str, options: sql.Composable = scratch.EMPTY) -> Scratch:
        """Create the database to restore into."""
        self.note(scratch=name)
        made = scratch.create(self.session, name, options)
        self.note(oid=made.oid)
        return made

    def swap(self, made: Scratch, database: str, *, replace: bool = True) -> str:
        """Give `made` the name `database`. Return the new name of the old database, "" if there was none.

        Without `replace` there must be no old database. Raises BackupError; the old database is then unchanged.
        """
        old = scratch.find(self.session, database) if replace else None
        kept = names.derived(database, f"_before_{system.compact().lower()}") if old else ""
        try:
            if old:
                self._close(old)
            self._rename(made, database, old, kept)
        except (psycopg.Error, BackupError) as error:
            raise BackupError(
                f"database {database} could not be renamed; it is unchanged", seen=str(error).strip(),
                run="SELECT gid FROM pg_prepared_xacts; a prepared transaction keeps the database in use",
            ) from None  # fmt: skip
        self._open()
        self.note(scratch="", oid=0, closed=0)
        return kept

    def _close(self, old: Scratch) -> None:
        """Refuse new connections to the old database: a pool would reconnect before the rename."""
        row = self.session.execute("SELECT datallowconn FROM pg_database WHERE oid = %s", (old.oid,)).fetchone()
        if row and row[0]:
            self.note(closed=old.oid)
            self._alter(old.name, sql.SQL("ALLOW_CONNECTIONS false"))

    def _rename(self, made: Scratch, database: str, old: Scratch | None, kept: str) -> None:
        with self.session.transaction():
            end = "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE datname = %s"
            for each in (old, made) if old else (made,):
                self.session.execute(end, (WAIT_MS, each.name))
            if old:
                self._proved(old, kept)
            self._proved(made, database)

    def _proved(self, each: Scratch, name: str) -> None:
        """Rename a database whose name still belongs to its oid."""
        if scratch.find(self.session, each.name) != each:
            raise BackupError("a database was renamed or dropped by another session", where=each.name)
        self._alter(each.name, sql.SQL("RENAME TO {}").format(sql.Identifier(name)))

    def _alter(self, name: str, what: sql.Composable) -> None:
        self.session.execute(sql.SQL("ALTER DATABASE {} {}").format(sql.Identifier(name), what))

    def _open(self) -> list[str]:
        """Reopen the closed database under its current name."""
        row = self.session.execute(
            "SELECT datname::text FROM pg_database WHERE oid = %s AND NOT datallowconn", (self.facts.get("closed", 0),)
        ).fetchone()
        if row:
            self._alter(str(row[0]), sql.SQL("ALLOW_CONNECTIONS true"))
        return [f"database {row[0]} accepts connections again"] if row else []

    def end(self) -> list[str]:
        """Reopen the closed database, drop an unused scratch database, close the journal. Return the changes.

        The journal comes last: it cannot be written while the disk is full, which the drop may end.
        """
        done = self._open()
        name, oid = str(self.facts.get("scratch") or ""), int(self.facts.get("oid") or 0)
        found = scratch.find(self.session, name) if name else None
        # Without an oid, CREATE DATABASE was killed: the random token in the name is then the proof.
        if found and oid in (0, found.oid) and scratch.drop(self.session, found):
            done.append(f"scratch database {name} dropped")
        self.note(scratch="", oid=0, closed=0)
        return done


@contextmanager
def begun(session: Connection, database: str) -> Iterator[Exchange]:
    """Start a restore of a dump, after a clean-up; at the end, clean up again. Raises HostError if another one runs."""
    with journal.held(JOURNAL, BUSY):
        _end_killed(session)
        now = Exchange(session)
        now.note(database=database, system=_identifier(session), when=system.stamp())
        try:
            yield now
        except (psycopg.Error, OSError) as error:
            raise BackupError(
                "the restore of the dump ended early", where=database, seen=str(error).strip(),
                run="provision restore clean-up; then repeat the restore",
            ) from None  # fmt: skip
        finally:
            # A server that is gone, a disk that is full: the next command cleans up.
            with suppress(psycopg.OperationalError, OSError):
                now.end()


def clean_up(session: Connection) -> list[str]:
    """Clean up after a killed restore of a dump. Return the changes; none while a restore is running.

    None on a server in recovery either, which is read-only: dumps can be taken from it all the same.
    """
    row = session.execute("SELECT pg_is_in_recovery()").fetchone()
    if not unfinished() or (row and row[0]):
        return []
    try:
        with journal.held(JOURNAL, BUSY):
            return _end_killed(session)
    except HostError:
        return []


def _end_killed(session: Connection) -> list[str]:
    """Clean up what the journal names. One of another cluster names nothing here, and is forgotten."""
    facts = {key: value for key, value in system.evidence(JOURNAL).items() if key != "schema"}
    if facts.get("system") == _identifier(session):
        return Exchange(session, facts).end()
    if not facts:
        return []
    system.keep(JOURNAL, {})
    return ["the journal of a restore into another cluster removed"]


def _identifier(session: Connection) -> str:
    row = session.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    return str(row[0]) if row else ""


def unfinished() -> str:
    """Describe the leftovers of a killed restore of a dump; "" if there are none or it is still running."""
    facts = system.evidence(JOURNAL)
    left = [f"scratch database {facts['scratch']}"] if facts.get("scratch") else []
    left += [f"database {facts.get('database')} closed to connections"] if facts.get("closed") else []
    return "" if not left or journal.is_held(JOURNAL) else " and ".join(left)
