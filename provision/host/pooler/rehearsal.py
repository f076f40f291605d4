"""Test a pooler configuration by starting a scratch PgBouncer with it. Does IO.

PgBouncer cannot check a configuration without starting. The scratch instance uses the same files, but no network, and
its socket and pid file are in a temporary directory that is always removed. The test then logs in to each database as a
user that does not exist. To reject that login the pooler must connect to the server with its certificates and its own
role, and call the lookup function.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from provision import secure_path
from provision.database import connect
from provision.errors import DatabaseError, HostError
from provision.host.pooler import configuration
from provision.quoting import conninfo
from provision.system import POSTGRES, as_user, running

PROGRAM = "/usr/sbin/pgbouncer"
PORT = 6432  # part of the socket's name; no TCP port is opened
START_TIMEOUT_S = 10
NO_SUCH_USER = "provision-rehearsal"
REFUSALS = ("authentication failed", "login rejected", "no authentication method", "no such user")
COMPLAINTS = ("ERROR", "FATAL", "could not parse", "hba line", "unknown parameter", "invalid value")


def rehearse(path: Path) -> None:
    """Start and stop a scratch pooler with the configuration file `path`.

    Raises HostError with the pooler's log messages if it does not start or cannot look up a user.
    """
    with as_user():  # as postgres, whose files root must not follow
        scratch = Path(tempfile.mkdtemp(prefix="provision-pooler-"))
    try:
        with as_user():
            (scratch / "pgbouncer.ini").write_text(
                # No section header: the files end in [pgbouncer], and a repeated section would reset it to defaults.
                f"%include {path}\nlisten_addr =\nlisten_port = {PORT}\n"
                f"unix_socket_dir = {scratch}\npidfile = {scratch}/pid\nlogfile =\n"
                f"query_wait_timeout = {START_TIMEOUT_S}\nserver_login_retry = 1\n"
            )
        log = scratch / "log"
        command = (PROGRAM, scratch / "pgbouncer.ini")
        with running(*command, log=log, directory=Path("/"), user=POSTGRES, wait_s=START_TIMEOUT_S) as pooler:
            _ready(pooler, scratch, log, path)
            for database in configuration.databases(path):
                _look_up(scratch, database, log, path)
    finally:
        with as_user():
            shutil.rmtree(scratch, ignore_errors=True)


def _ready(pooler: subprocess.Popen[bytes], scratch: Path, log: Path, path: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and pooler.poll() is None and not (scratch / f".s.PGSQL.{PORT}").exists():
        time.sleep(0.05)
    output = _read(log)
    # The pooler skips an invalid HBA rule and only logs it.
    if pooler.poll() is not None or not (scratch / f".s.PGSQL.{PORT}").exists() or _complaints(output):
        raise HostError(
            "the pooler does not start with this configuration",
            where=str(path),
            seen=_complaints(output) or output.strip()[-500:] or f"not ready after {START_TIMEOUT_S} s",
            allowed="a valid configuration; the running pooler was not changed",
            run="fix the variable, then run the playbook again",
        )


def _look_up(scratch: Path, database: str, log: Path, path: Path) -> None:
    user = {"user": NO_SUCH_USER, "password": NO_SUCH_USER}
    where = conninfo({"host": scratch, "port": PORT, "dbname": database, **user})
    try:
        with as_user():
            connect(where, application="provision rehearse").close()
        result = f"login as the nonexistent user {NO_SUCH_USER} succeeded"
    except DatabaseError as error:
        result = error.seen
        if any(words in result for words in REFUSALS):
            return
    raise HostError(
        f"the pooler cannot use database {database} with this configuration",
        where=str(path),
        seen="; ".join([result, *_warnings(_read(log))]),
        allowed="a running server, the pooler's role, and the lookup function",
        run="site.yml --tags database creates role and function; systemctl status 'postgresql@*'",
    )


def _read(log: Path) -> str:
    with as_user():
        return secure_path.text(log)


def _complaints(log: str) -> str:
    return "; ".join([_words(line) for line in log.splitlines() if any(word in line for word in COMPLAINTS)][:4])


def _warnings(log: str) -> list[str]:
    lines = [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line]
    return [_words(line) for line in lines if NO_SUCH_USER not in line][-2:]


def _words(line: str) -> str:
    return line.split("] ", 1)[-1].strip()
