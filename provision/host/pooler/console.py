"""PgBouncer's admin console: show, pause, resume, reload. On its host, as root or postgres. Does IO.

Connects through the pooler's socket as the system user that runs it, which needs no password and is exempt from the
client limit. Without a running pooler there is nothing to pause or reload, which is not an error.
"""

from __future__ import annotations

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
from provision.quoting import conninfo
from provision.system import as_user, run

UNIT = "pgbouncer.service"
WATCHDOG = "provision-pool-resume"
GRACE_S = 15  # clients must not time out just before the automatic resume
DRAIN_S = 10  # measured: a queue of 500 clients was served within a second


@dataclass(frozen=True)
class Place:
    """Location of the console: PgBouncer names its socket after its port."""

    directory: str
    port: int

    @classmethod
    def read(cls) -> Place | None:
        """Return this host's console; None if the plan has no pooler."""
        pooler = load.load().pooler
        return cls(pooler.socket_directory, pooler.port) if pooler.enabled else None

    @property
    def socket(self) -> Path:
        """Path of the socket."""
        return Path(self.directory) / f".s.PGSQL.{self.port}"

    @contextmanager
    def console(self) -> Iterator[Connection]:
        """Open a console session. Raises DatabaseError."""
        where = conninfo({"host": self.directory, "port": self.port, "dbname": "pgbouncer", "user": "pgbouncer"})
        with as_user():
            session = connect(where, application="provision pool")
        try:
            yield session
        finally:
            session.close()  # psycopg's context manager would send COMMIT, which the console does not support


def present() -> Place | None:
    """Return the pooler of this host if it runs."""
    place = Place.read()
    return place if place and run("systemctl", "is-active", "--quiet", UNIT, check=False).ok else None


def show(session: Connection, what: str) -> list[dict[str, Any]]:
    """Run SHOW and return its rows as dictionaries."""
    cursor = session.execute(f"SHOW {what}".encode())
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def settings(session: Connection) -> dict[str, tuple[str, bool]]:
    """Return the active settings by name: value, and whether a reload can change it.

    Socket modes are octal; PgBouncer 1.18 reports them in decimal.
    """
    found = {}
    for row in show(session, "CONFIG"):
        value = str(row["value"] or "")
        if row["key"] == "unix_socket_mode":
            value = f"{int(value, 8 if value.startswith('0') else 10):04o}"
        found[str(row["key"])] = (value, row["changeable"] == "yes")
    return found


@dataclass(frozen=True)
class Pause:
    """Result of a pause: `running` is the number of transactions that did not end in time."""

    pooler: bool
    running: int = 0


def pause(wait_s: float, at_most_s: int) -> Pause:
    """Hold new transactions so that clients wait instead of failing, and wait for running transactions to end.

    Returns after `wait_s` seconds even if transactions still run; a server restart terminates them. With `at_most_s`
    the pool resumes automatically after so many seconds, even if this run was killed, and clients wait at least as
    long before they get an error. 0 keeps the configured timeout, and the pool stays paused until `resume`.
    Raises HostError.
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
                raise HostError("cannot pause the pooler", where=str(place.socket), seen=str(error).strip()) from None
            done = True
    if done:
        return Pause(pooler=True)
    with place.console() as session:
        return Pause(pooler=True, running=sum(int(row["sv_active"]) for row in show(session, "POOLS")))


def resume() -> bool:
    """Resume, and restore the configured limits once the queue is empty. False if nothing was paused.

    Raises HostError.
    """
    place = present()
    if place is None:
        return False
    with place.console() as session:
        try:
            session.execute(b"RESUME")
            paused = True
        except psycopg.Error as error:
            if "not paused" not in str(error):
                raise HostError("cannot resume the pooler", where=str(place.socket), seen=str(error).strip()) from None
            paused = False
        # Clients that waited longer than the configured timeout must be served before RELOAD restores it.
        until = time.monotonic() + DRAIN_S
        while paused and time.monotonic() < until and _waiting(session):
            time.sleep(0.1)
        session.execute(b"RELOAD")
    _stop_watching()  # last: if this run is killed before, the timer resumes
    return paused


def _waiting(session: Connection) -> int:
    return sum(int(row["cl_waiting"]) for row in show(session, "POOLS") if row["database"] != "pgbouncer")


def reload() -> bool:
    """Reload the pooler's configuration and certificates; False if no pooler runs."""
    place = present()
    if place is None:
        return False
    with place.console() as session:
        session.execute(b"RELOAD")
    return True


def status() -> dict[str, Any]:
    """Return version, state, and client and server connections by pool. Raises HostError without a running pooler."""
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


def statistics() -> tuple[list[dict[str, Any]], ...]:
    """Return the rows of POOLS, STATS and CONFIG, for monitoring. Raises HostError or DatabaseError."""
    place = Place.read()
    if place is None:
        raise HostError("this host has no pooler", run="site.yml --tags toolkit,pgbouncer")
    with place.console() as session:
        try:
            return tuple(show(session, what) for what in ("POOLS", "STATS", "CONFIG"))
        except psycopg.Error as error:
            raise HostError(
                "the pooler rejected a console command", where=str(place.socket), seen=str(error).strip()
            ) from None


def _has_state(version: str) -> bool:
    return [int(part) for part in version.split()[-1].split(".")[:2]] >= [1, 19]


def _watch(seconds: int) -> None:
    _stop_watching()
    timer = (f"--unit={WATCHDOG}", f"--on-active={seconds}s", "--timer-property=AccuracySec=1s")
    command = ("/usr/local/bin/provision", "pool", "resume")
    done = run("systemd-run", "--quiet", *timer, *command, check=False)
    if not done.ok:
        raise HostError("cannot schedule the automatic resume of the pool", where=WATCHDOG, seen=done.last)


def _stop_watching() -> None:
    run("systemctl", "stop", f"{WATCHDOG}.timer", check=False)  # the unit exists only after a pause
