"""PgBouncer's console: look, pause, resume, reload. On its host, as root or postgres. Does IO.

The console is reached through the pooler's own socket by the system user that runs it: no password, and no limit of
clients keeps it out. A host without a pooler, or with one that does not run, has nothing to pause: that is no error.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from provision.database import Connection, connect, send_within
from provision.errors import HostError
from provision.plan import load
from provision.system import as_user

UNIT = "pgbouncer.service"
WATCHDOG = "provision-pool-resume"
GRACE_S = 15  # so that nobody is sent away in the moment in which the pool resumes by itself
DRAIN_S = 10  # after a pause the queue of 500 clients was empty within a second


@dataclass(frozen=True)
class Place:
    """Where the console is: PgBouncer names its socket after its port."""

    directory: str
    port: int

    @classmethod
    def read(cls) -> Place | None:
        """Return this host's console; None if the plan has no pooler."""
        pooler = load.load().pooler
        return cls(pooler.socket_directory, pooler.port) if pooler.enabled else None

    @property
    def socket(self) -> Path:
        """The socket's path."""
        return Path(self.directory) / f".s.PGSQL.{self.port}"

    @contextmanager
    def console(self) -> Iterator[Connection]:
        """Open a session of the console. Raises DatabaseError."""
        where = f"host={self.directory} port={self.port} dbname=pgbouncer user=pgbouncer"
        with as_user():
            session = connect(where, application="provision pool")
        try:
            yield session
        finally:
            session.close()  # not as psycopg's own block does, with a COMMIT: the console knows none


def present() -> Place | None:
    """Give the pooler of this host if one runs."""
    place = Place.read()
    words = ["systemctl", "is-active", "--quiet", UNIT]
    running = subprocess.run(words, check=False).returncode == 0  # noqa: S603
    return place if place and running else None


def show(session: Connection, what: str) -> list[dict[str, Any]]:
    """Run SHOW and give its rows by column."""
    cursor = session.execute(f"SHOW {what}".encode())
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def settings(session: Connection) -> dict[str, tuple[str, bool]]:
    """Give what is in force, by name, and whether a reload may change it; modes in octal, as 1.18 does not."""
    found = {}
    for row in show(session, "CONFIG"):
        value = str(row["value"] or "")
        if row["key"] == "unix_socket_mode":
            value = f"{int(value, 8 if value.startswith('0') else 10):04o}"
        found[str(row["key"])] = (value, row["changeable"] == "yes")
    return found


@dataclass(frozen=True)
class Pause:
    """What a pause did: `running` are the transactions that had not ended in time."""

    pooler: bool
    running: int = 0


def pause(wait_s: float, at_most_s: int) -> Pause:
    """Let clients wait instead of failing: give no server connection away any more, and wait for those in use.

    After `wait_s` seconds it goes on although transactions still run: they are cut with the server. With `at_most_s`
    clients wait for so long at least before they get an error, and then the pool resumes by itself, so that a run
    that was killed in between stops nobody for good; 0 leaves both as configured, until `resume`.
    """
    place = present()
    if place is None:
        return Pause(pooler=False)
    if at_most_s:
        _watch(at_most_s)
    with place.console() as session:
        if at_most_s:
            session.execute(f"SET query_wait_timeout = {int(at_most_s) + GRACE_S}".encode())
        try:
            done = send_within(session, b"PAUSE", wait_s)
        except psycopg.Error as error:
            if "already" not in str(error):
                raise HostError(
                    "the pooler cannot be paused", where=str(place.socket), seen=str(error).strip()
                ) from None
            done = True
    if done:
        return Pause(pooler=True)
    with place.console() as session:
        return Pause(pooler=True, running=sum(int(row["sv_active"]) for row in show(session, "POOLS")))


def resume() -> bool:
    """Serve again, and put back the configured limits once the queue is empty. False when nothing was paused."""
    place = present()
    if place is None:
        return False
    _stop_watching()
    with place.console() as session:
        try:
            session.execute(b"RESUME")
            paused = True
        except psycopg.Error as error:
            if "not paused" not in str(error):
                raise HostError("the pooler cannot resume", where=str(place.socket), seen=str(error).strip()) from None
            paused = False
        # A client that waited for longer than is configured would else be cut just as its turn has come.
        until = time.monotonic() + DRAIN_S
        while paused and time.monotonic() < until and _waiting(session):
            time.sleep(0.1)
        session.execute(b"RELOAD")
    return paused


def _waiting(session: Connection) -> int:
    return sum(int(row["cl_waiting"]) for row in show(session, "POOLS") if row["database"] != "pgbouncer")


def reload() -> bool:
    """Let the pooler read its files and certificates again; False where none runs."""
    place = present()
    if place is None:
        return False
    with place.console() as session:
        session.execute(b"RELOAD")
    return True


def status() -> dict[str, Any]:
    """Tell what a pool does now: clients and servers by pool, and which of them wait."""
    place = present()
    if place is None:
        raise HostError(
            "no pooler runs on this host", where=UNIT, run=f"systemctl status {UNIT}; journalctl -u {UNIT} -n 50"
        )
    with place.console() as session:
        columns = ("database", "user", "cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_login", "maxwait")
        pools = [{key: row[key] for key in columns} for row in show(session, "POOLS") if row["database"] != "pgbouncer"]
        version = str(show(session, "VERSION")[0]["version"])
        state = {row["key"]: row["value"] for row in show(session, "STATE")} if _has_state(version) else {}
    return {"version": version, "port": place.port, "paused": state.get("paused", "unknown") == "yes", "pools": pools}


def figures() -> tuple[list[dict[str, Any]], ...]:
    """Give the rows of POOLS, STATS and CONFIG, for monitoring. Raises HostError or DatabaseError."""
    place = Place.read()
    if place is None:
        raise HostError("this host has no pooler", run="site.yml --tags toolkit,pgbouncer")
    with place.console() as session:
        try:
            return tuple(show(session, what) for what in ("POOLS", "STATS", "CONFIG"))
        except psycopg.Error as error:
            raise HostError("the pooler refused a question", where=str(place.socket), seen=str(error).strip()) from None


def _has_state(version: str) -> bool:
    return [int(part) for part in version.split()[-1].split(".")[:2]] >= [1, 19]


def _watch(seconds: int) -> None:
    _stop_watching()
    words = [
        "systemd-run",
        "--quiet",
        f"--unit={WATCHDOG}",
        f"--on-active={seconds}s",
        "--timer-property=AccuracySec=1s",
    ]
    done = subprocess.run(  # noqa: S603
        [*words, "/usr/local/bin/provision", "pool", "resume"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise HostError("nothing would resume the pool by itself", where=WATCHDOG, seen=done.stderr.strip())


def _stop_watching() -> None:
    words = ["systemctl", "stop", f"{WATCHDOG}.timer"]
    subprocess.run(words, capture_output=True, check=False)  # noqa: S603 - it is gone unless a pause made it
