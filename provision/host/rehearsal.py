"""Test a server configuration by starting a scratch instance with it. Does IO.

`postgres -C` and pg_file_settings do not find everything that prevents a start: a missing preload library, unavailable
huge pages, an invalid line in pg_hba.conf. The scratch instance listens on no network, archives nothing and uses little
memory. Its data directory is temporary and always removed; it never opens the real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from provision import secure_path
from provision.errors import DatabaseError
from provision.system import POSTGRES, as_user, run, running

START_TIMEOUT_S = 60
# Two starts. One has the real shared_buffers but no huge pages, since untouched memory costs nothing. The other has the
# real huge_pages but little memory, because the running server holds the reserved pages.
MEMORY: tuple[dict[str, str], ...] = ({"huge_pages": "off"}, {"shared_buffers": "16MB"})
# Settings that must not affect the real server: network, archive, pid file, log.
OVERRIDES = {
    "listen_addresses": "",
    "archive_mode": "off",
    "external_pid_file": "",
    "logging_collector": "off",
    "log_destination": "stderr",
    "autovacuum": "off",
}


def rehearse(programs: Path, configuration: Path) -> None:
    """Start and stop a scratch server with the files in `configuration`, using the server binaries in `programs`.

    Raises DatabaseError with the server's log messages if it does not start.
    """
    home = Path("/var/lib/postgresql")
    place = home if home.is_dir() and os.geteuid() == 0 else None
    with as_user():  # as postgres, who owns the directory: root would follow a link that took the place of its own
        scratch = Path(tempfile.mkdtemp(prefix=".rehearsal-", dir=place))
    try:
        data = scratch / "data"
        words = ("--no-sync", "--auth=trust", "--username=postgres")
        made = run(programs / "initdb", "--pgdata", data, *words, user=POSTGRES, directory=scratch, check=False)
        if not made.ok:
            raise DatabaseError("cannot create a scratch server", where=str(scratch), seen=made.stderr.strip())
        for memory in MEMORY:
            _start(programs, configuration, scratch, data, memory)
    finally:
        with as_user():
            shutil.rmtree(scratch, ignore_errors=True)


def _start(programs: Path, configuration: Path, scratch: Path, data: Path, memory: dict[str, str]) -> None:
    overrides = {**OVERRIDES, **memory, "data_directory": str(data), "unix_socket_directories": str(scratch)}
    options = [f"--{name}={value}" for name, value in overrides.items()]
    command: list[str | Path] = [
        programs / "postgres",
        "-D",
        data,
        f"--config_file={configuration / 'postgresql.conf'}",
        *options,
    ]
    log = scratch / "log"
    with running(
        *command, log=log, directory=scratch, user=POSTGRES, stop=signal.SIGINT, wait_s=START_TIMEOUT_S
    ) as server:
        # The server starts with an invalid pg_ident.conf and only logs the error, so the log decides.
        ready = _ready(server, data)
        with as_user():
            said = secure_path.text(log)
        if not ready or "of configuration file" in said:
            raise DatabaseError(
                "the server does not start with this configuration",
                where=str(configuration),
                seen=_reason(said),
                allowed="a valid configuration; the running server was not changed",
                run="fix the variable, then run the playbook again",
            )


def _ready(server: subprocess.Popen[bytes], data: Path) -> bool:
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


USUAL = ("starting PostgreSQL", "listening on", "extension initialized", "database system is")
"""What every start logs."""


def _reason(log: str) -> str:
    errors = [
        line for line in log.splitlines() if any(word in line for word in ("FATAL:", "ERROR:", "HINT:", "CONTEXT:"))
    ]
    causes = [line for line in log.splitlines() if "LOG:" in line and not any(word in line for word in USUAL)]
    return "; ".join((errors + causes)[:4]) or log.strip()[-500:] or f"not ready after {START_TIMEOUT_S} s"
