"""A scratch server: its own data directory, socket and log in a private directory that is always removed. Does IO.

It runs as this process's user, or as postgres where that is root, listens on no network and archives nothing. It ends
with the process that started it; if that is killed, the next scratch server in the same place removes the directory.
`rehearsal` starts one with the files of a configuration.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from provision import secure_path
from provision.database import ask, connect_pinned
from provision.errors import DatabaseError, HostError
from provision.quoting import conninfo
from provision.system import POSTGRES, as_user, run, running

START_TIMEOUT_S = 60
PREFIX = ".provision-scratch-"
ABANDONED_S = 60
"""Age from which a directory that no process has locked is a killed command's; a new one is locked at once."""
PORT = 5432  # part of the socket's name; no TCP port is opened
OVERRIDES = {
    "listen_addresses": "",
    "archive_mode": "off",
    "external_pid_file": "",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",  # `reason` reads them
    "autovacuum": "off",
}
"""Settings that must not affect a real server: network, archive, pid file, log."""
DISPOSABLE = {"fsync": "off", "huge_pages": "off", "shared_buffers": "32MB"}
"""A scratch server need not survive the machine, and takes little of its memory."""
USUAL = ("starting PostgreSQL", "listening on", "extension initialized", "database system is")
"""What every start logs."""


@contextmanager
def directory(programs: Path, *words: str, place: Path | None = None) -> Iterator[Path]:
    """Make a private directory with an empty data directory `data`, and remove it at the end.

    `words` are further options of initdb; `place` is a folder of the server's user. Raises HostError, DatabaseError.
    """
    home = Path("/var/lib/postgresql")
    if place is None and home.is_dir() and os.geteuid() == 0:
        place = home
    _require_user()
    with as_user():  # as postgres, who owns the directory: root would follow a link that took the place of its own
        _remove_abandoned(place or Path(tempfile.gettempdir()))
        scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = _lock(scratch)
    try:
        options = ("--no-sync", "--auth=trust", "--username=postgres", *words)
        made = run(programs / "initdb", "--pgdata", scratch / "data", *options, user=POSTGRES, directory=scratch,
                   check=False)  # fmt: skip
        if not made.ok:
            raise DatabaseError("cannot create a scratch server", where=str(scratch), seen=made.stderr.strip())
        yield scratch
    finally:
        with as_user():
            shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


@contextmanager
def serving(programs: Path, scratch: Path, *words: str) -> Iterator[tuple[bool, str]]:
    """Run the server on a `directory` with options of postgres; yield whether it started, and its log until then."""
    log = scratch / "log"
    command: tuple[str | Path, ...] = (
        "setpriv",
        "--pdeathsig=INT",
        programs / "postgres",
        "-D",
        scratch / "data",
        *words,
    )
    with running(
        *command, log=log, directory=scratch, user=POSTGRES, stop=signal.SIGINT, wait_s=START_TIMEOUT_S
    ) as server:
        started = ready(server, scratch / "data")
        with as_user():
            said = secure_path.text(log)
        yield started, said


@contextmanager
def server(programs: Path) -> Iterator[str]:
    """Run an empty server with these programs and yield the superuser's URL. Raises HostError, DatabaseError."""
    with directory(programs, "--encoding=UTF8", "--locale=C") as scratch:
        words = options({**DISPOSABLE, "unix_socket_directories": str(scratch), "port": str(PORT)})  # not PGPORT's
        with serving(programs, scratch, *words) as (ready, log):
            if not ready:
                raise DatabaseError("a scratch server does not start", where=str(programs), seen=reason(log))
            place = url(scratch)
            _require_own(place, scratch / "data")
            yield place


def url(scratch: Path) -> str:
    """Return the superuser's key=value string of database postgres, of the server on a `directory`."""
    # Without an empty hostaddr, PGHOSTADDR would send the sessions to another server.
    return conninfo({"host": scratch, "hostaddr": "", "port": PORT, "user": "postgres", "dbname": "postgres"})


def options(settings: dict[str, str]) -> list[str]:
    """Return settings as options of postgres, after those that keep a scratch server apart."""
    return [f"--{name}={value}" for name, value in {**OVERRIDES, **settings}.items()]


def reason(log: str) -> str:
    """Return the messages of a server's log that explain why it does not start."""
    errors = [
        line for line in log.splitlines() if any(word in line for word in ("FATAL:", "ERROR:", "HINT:", "CONTEXT:"))
    ]
    causes = [line for line in log.splitlines() if "LOG:" in line and not any(word in line for word in USUAL)]
    return "; ".join((errors + causes)[:4]) or log.strip()[-500:] or f"not ready after {START_TIMEOUT_S} s"


def ready(server: subprocess.Popen[bytes], data: Path) -> bool:
    """Wait until a server accepts connections; False if it ends first, or has not after START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            # The last line is the server's state (postmaster.pid, written by the server itself since version 10).
            if secure_path.text(data / "postmaster.pid").splitlines()[-1].strip() == "ready":
                return True
        except (OSError, IndexError):
            pass
        time.sleep(0.1)
    return False


def _lock(scratch: Path) -> int:
    """Lock a directory for as long as this process lives, or until the descriptor is closed. Raises OSError."""
    handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_abandoned(place: Path) -> None:
    """Remove the directories of killed commands of this user; those in use and those of other users stay."""
    for path in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > ABANDONED_S:
                lock = _lock(path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _require_user() -> None:
    if os.geteuid() == 0 and POSTGRES not in {each.pw_name for each in pwd.getpwall()}:
        raise HostError(
            "a server does not run as root",
            seen=f"this process is root and there is no user {POSTGRES}",
            allowed=f"an ordinary user, or root on a machine with the user {POSTGRES}",
            run="apt-get install postgresql-common",
        )


def _require_own(url: str, data: Path) -> None:
    with connect_pinned(url, application="provision scratch server") as session:
        seen = str(ask(session, "SHOW data_directory")[0][0])
    if seen != str(data):
        raise DatabaseError("connected to another server than the scratch server", where=seen, allowed=str(data))
