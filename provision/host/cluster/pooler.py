"""A PgBouncer that follows the primary: its file of databases, pause, resume, and sessions that hang. Does IO.

Role pgbouncer places [databases] with `cluster.PRIMARY` for an address; the file that PgBouncer reads is made of it.
"""

from __future__ import annotations

import select
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from provision import secure_path, system
from provision.database import Connection
from provision.errors import DatabaseError, HostError
from provision.host.pooler import console
from provision.plan.cluster import PRIMARY, Member

TEMPLATE = Path("/etc/pgbouncer/provision/databases.ini")
FILE = Path("/etc/pgbouncer/provision/follow/databases.ini")
MARK = "# primary: "
GRACE_S = 15
"""Clients may wait this much longer than the longest pause."""
HANGING_S = 1.0
"""A dead server's sessions end at once where its kernel lives. Sessions that last longer hang."""


def target(file: Path) -> str:
    """Return the member that a pooler's file leads to; "" if there is no file yet, or the caller may not read it."""
    with suppress(OSError):
        first = secure_path.text(file).partition("\n")[0]
        if first.startswith(MARK):
            return first.removeprefix(MARK)
    return ""


@dataclass
class Pooler:
    """The pooler of this host."""

    place: console.Place
    template: Path
    file: Path
    paused: bool = False
    _pausing: Connection | None = None
    _held: ExitStack = field(default_factory=ExitStack)

    @property
    def target(self) -> str:
        """The member that the file leads to; "" if there is no file yet."""
        return target(self.file)

    def write(self, member: Member) -> bool:
        """Write the file for a primary; False if it is so already. Raises OSError."""
        text = secure_path.text(self.template).replace(PRIMARY, member.address)
        text = f"{MARK}{member.name}\n{text}"
        with suppress(FileNotFoundError):
            if secure_path.text(self.file) == text:
                return False
        about = self.file.parent.stat()  # postgres, which runs the follower and the pooler, also where root writes
        system.write(self.file, text, mode=0o640, owner=(about.st_uid, about.st_gid))
        return True

    def route(self, member: Member, at_most_s: int = 0) -> bool:
        """Lead the pooler's databases to a member and reload it; False if they do so already.

        Server connections to another member are closed when their transaction ends. `at_most_s` is that of a pause
        that goes on. Raises HostError and OSError.
        """
        if not self.write(member):
            return False
        self._run(b"RELOAD")
        if self.paused:
            self._patience(at_most_s)
        return True

    def end_hanging(self, member: Member, members: tuple[Member, ...]) -> list[str]:
        """Disconnect databases with transactions on members other than the primary; return the databases.

        For use after a failover. A server process that died closed its connections; what is left belongs to a host
        that is paused or cut off, whose transactions can never be acknowledged, but whose clients would wait for
        minutes. PgBouncer's KILL is the only command that ends them. Raises HostError.
        """
        others = {(each.address, each.port) for each in members if each.name != member.name}
        ended: list[str] = []
        until = time.monotonic() + HANGING_S
        while hanging := self._hanging(others):
            if time.monotonic() > until:
                for database in hanging:
                    name = '"' + database.replace('"', '""') + '"'
                    self._run(f"KILL {name}".encode())
                    self._run(f"RESUME {name}".encode())
                return hanging
            time.sleep(0.1)
        return ended

    def _hanging(self, others: set[tuple[str, int]]) -> list[str]:
        with self.place.console() as session:
            rows = console.show(session, "SERVERS")
        return sorted(
            {str(row["database"]) for row in rows if row["state"] == "active" and (row["addr"], row["port"]) in others}
        )

    def begin_pause(self, at_most_s: int) -> None:
        """Hold new transactions, with clients that wait at least `at_most_s` seconds. Raises HostError."""
        if self.paused:
            return
        self._patience(at_most_s)
        self._held = ExitStack()
        self._pausing = self._held.enter_context(self.place.console())
        self.paused = True
        self._pausing.pgconn.send_query(b"PAUSE")

    def drained(self) -> bool:
        """Whether all transactions have ended since the pause began. Raises HostError."""
        if self._pausing is None:
            return self.paused
        raw = self._pausing.pgconn
        if select.select([raw.socket], [], [], 0)[0]:
            raw.consume_input()
        if raw.is_busy():
            return False
        result = raw.get_result()
        self._forget()
        if result is not None and result.error_message and "already" not in str(result.error_message):
            raise HostError("cannot pause the pooler", where=str(self.place.socket), seen=str(result.error_message))
        return True

    def running(self) -> int:
        """Return the number of transactions that run now. Raises HostError."""
        with self.place.console() as session:
            return sum(int(row["sv_active"]) for row in console.show(session, "POOLS"))

    def resume(self) -> bool:
        """Let clients go on; False if nothing was paused. Raises HostError."""
        self._forget()
        was = self._run(b"RESUME", ignore="not paused")
        self.paused = False
        return was

    def settle(self) -> None:
        """Restore the configured time limits, once the queue of a pause is empty. Raises HostError."""
        with self.place.console() as session:
            until = time.monotonic() + console.DRAIN_S
            while time.monotonic() < until and any(int(row["cl_waiting"]) for row in console.show(session, "POOLS")):
                time.sleep(0.1)
        self._run(b"RELOAD")

    def _patience(self, at_most_s: int) -> None:
        self._run(f"SET query_wait_timeout = {int(at_most_s) + GRACE_S}".encode())

    def _forget(self) -> None:
        self._pausing = None
        with suppress(psycopg.Error):
            self._held.close()

    def _run(self, command: bytes, ignore: str = "") -> bool:
        """Run a console command; False if the pooler answers with the error `ignore`."""
        try:
            with self.place.console() as session:
                session.execute(command)
        except psycopg.Error as error:
            if ignore and ignore in str(error):
                return False
            raise HostError(
                f"the pooler rejected {command.decode()}", where=str(self.place.socket), seen=str(error).strip()
            ) from None
        except DatabaseError as error:
            raise HostError(
                "the pooler's console does not answer", where=str(self.place.socket), seen=error.seen,
                run="systemctl status pgbouncer",
            ) from None  # fmt: skip
        return True
