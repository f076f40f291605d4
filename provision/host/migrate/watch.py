"""Monitor a running file from a second session: blocking sessions and index build progress. Does IO.

The second session opens only after a file has run for a while. It is optional: without a free connection slot the run
continues without it.
"""

from __future__ import annotations

import time

import psycopg

from provision.database import Connection, Session, blockers, connect
from provision.errors import DatabaseError

EVERY_S = 1.0
"""Polling interval in seconds."""

CONNECTS_IN_S = 0.5
"""If the first poll is due sooner than this, connect in advance: a login on a busy host takes as long."""

_PROGRESS = """
SELECT p.phase, p.index_relid::regclass::text,
       round(100.0 * coalesce(nullif(p.tuples_done, 0), p.blocks_done)
             / nullif(CASE WHEN p.tuples_done > 0 THEN p.tuples_total ELSE p.blocks_total END, 0))::int
FROM pg_stat_progress_create_index p WHERE p.pid = %s
"""


class Watcher:
    """Monitors one server process; `seen` is the latest set of sessions that blocked it."""

    def __init__(self, url: str, pid: int, first_look_s: float) -> None:
        """The first poll is `first_look_s` seconds after `start`."""
        self._url, self._pid, self._first_look_s = url, pid, first_look_s
        self._connection: Connection | None = None
        self._usable = True
        self._next_look = 0.0
        self.seen: list[Session] = []
        self.note = ""

    def start(self) -> None:
        """Reset for a new statement."""
        self.seen, self.note = [], ""
        self._next_look = time.monotonic() + self._first_look_s
        if self._usable and self._first_look_s < CONNECTS_IN_S:
            try:
                self._connect()
            except DatabaseError:
                self._usable = False

    def look(self) -> None:
        """Poll if it is due."""
        if not self._usable or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + EVERY_S
        try:
            connection = self._connect()
            now = blockers(connection, self._pid)
            row = connection.execute(_PROGRESS, (self._pid,)).fetchone()
        except (psycopg.Error, DatabaseError):
            self._usable = False
            return
        self.seen = now or self.seen
        self.note = "waiting for " + "; ".join(map(str, now)) if now else _progress(row)

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._url, application="provision migrate watch", statement_timeout_ms=2000)
        return self._connection

    def close(self) -> None:
        """Close the second session if it is open."""
        if self._connection is not None:
            self._connection.close()


def _progress(row: tuple[object, ...] | None) -> str:
    if row is None:
        return ""
    phase, index, percent = row
    share = "" if percent is None else f" {percent} %"
    return f"{phase}{'' if index in (None, '-') else f' {index}'}{share}"
