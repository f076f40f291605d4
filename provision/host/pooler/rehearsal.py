"""Rehearse a pooler's start with the configuration that is on disk, before the real one meets it. Does IO.

PgBouncer has no mode that checks a file, and says "cannot load config file" when it is too late. So a scratch one is
started with the same files, but for its place: no network, a socket and a pid file in a directory of its own, which is
removed whatever happens. Then somebody who does not exist logs in to each database: to refuse him the pooler must
reach the server, with its certificates, as its own role, and call the function that looks users up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from provision.database import connect
from provision.errors import DatabaseError, HostError
from provision.host.pooler import configuration
from provision.system import as_user

PROGRAM = "/usr/sbin/pgbouncer"
PORT = 6432  # names the socket; nothing listens on it
START_TIMEOUT_S = 10
NOBODY = "provision-rehearsal"
REFUSALS = ("authentication failed", "login rejected", "no authentication method", "no such user")
COMPLAINTS = ("ERROR", "FATAL", "could not parse", "hba line", "unknown parameter", "invalid value")


def rehearse(path: Path) -> None:
    """Start and stop a scratch pooler with the files of `path`.

    Raises HostError with the pooler's own words when it does not start, or when it cannot look a user up.
    """
    scratch = Path(tempfile.mkdtemp(prefix="provision-pooler-"))
    try:
        (scratch / "pgbouncer.ini").write_text(
            # No section of its own: the files end in [pgbouncer], and one that begins again is put back to defaults.
            f"%include {path}\nlisten_addr =\nlisten_port = {PORT}\n"
            f"unix_socket_dir = {scratch}\npidfile = {scratch}/pid\nlogfile =\n"
            f"query_wait_timeout = {START_TIMEOUT_S}\nserver_login_retry = 1\n"
        )
        if os.geteuid() == 0:
            for each in (scratch, scratch / "pgbouncer.ini"):
                shutil.chown(each, "postgres", "postgres")
        become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        log = scratch / "log"
        with (
            log.open("w") as stream,
            subprocess.Popen(  # noqa: S603
                [*become, PROGRAM, str(scratch / "pgbouncer.ini")], stdout=stream, stderr=stream, cwd="/"
            ) as pooler,
        ):
            try:
                _ready(pooler, scratch, log, path)
                for database in configuration.databases(path):
                    _look_up(scratch, database, log, path)
            finally:
                pooler.send_signal(signal.SIGTERM)
                try:
                    pooler.wait(START_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    pooler.kill()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _ready(pooler: subprocess.Popen[bytes], scratch: Path, log: Path, path: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and pooler.poll() is None and not (scratch / f".s.PGSQL.{PORT}").exists():
        time.sleep(0.05)
    said = log.read_text(errors="replace")
    # It begins without a rule that it cannot read, and says so in its log alone.
    if pooler.poll() is not None or not (scratch / f".s.PGSQL.{PORT}").exists() or _complaints(said):
        raise HostError(
            "the pooler would not start with this configuration",
            where=str(path),
            seen=_complaints(said) or said.strip()[-500:] or f"not ready after {START_TIMEOUT_S} s",
            allowed="values with which it starts; the running pooler was not touched",
            run="correct the variable, then run again",
        )


def _look_up(scratch: Path, database: str, log: Path, path: Path) -> None:
    where = f"host={scratch} port={PORT} dbname={database} user={NOBODY} password={NOBODY}"
    try:
        with as_user():
            connect(where, application="provision rehearse").close()
        said = f"a user who does not exist ({NOBODY}) was let in"
    except DatabaseError as error:
        said = error.seen
        if any(words in said for words in REFUSALS):
            return
    raise HostError(
        f"the pooler would not reach database {database} with this configuration",
        where=str(path),
        seen="; ".join([said, *_warnings(log.read_text(errors="replace"))]),
        allowed="a server that it can log in to as its own role, and the function that looks users up",
        run="site.yml --tags database makes role and function; systemctl status 'postgresql@*'",
    )


def _complaints(log: str) -> str:
    return "; ".join([_words(line) for line in log.splitlines() if any(word in line for word in COMPLAINTS)][:4])


def _warnings(log: str) -> list[str]:
    lines = [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line]
    return [_words(line) for line in lines if NOBODY not in line][-2:]


def _words(line: str) -> str:
    return line.split("] ", 1)[-1].strip()
