"""The scratch cluster of a restore test, beside the real one: socket only, no archiving, little memory. Does IO.

It has its own directory, which is always removed, also that of a killed restore test. One restore test runs at a time.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from provision import system
from provision.host import scratch_server
from provision.host.backup import recovery, show, tool
from provision.host.backup.tool import BackupError
from provision.plan.schema import Plan

SCRATCH = Path("/var/lib/postgresql/provision-drill")
SOCKET = SCRATCH / "socket"
PORT = 5432  # used in the socket's name only
SHARED_BUFFERS = "128MB"
SPARE = 1.1  # the data's size plus some WAL
PRELOADED = ("pgaudit",)
"""Libraries without which a restored database rejects statements: their event triggers call them."""
STOP_S = 600
"""How long a server may take to stop before it is killed."""
KILLED = "started but not finished"
"""The failure in the evidence while a restore test is running, and after one was killed."""


def make(*folders: Path) -> None:
    """Make the scratch directory, its socket directory and these folders below it."""
    for folder in (SCRATCH, SOCKET, *folders):
        folder.mkdir(mode=0o700)


def clear(plan: Plan) -> None:
    """Remove the scratch cluster, also that of a killed restore test."""
    if SCRATCH.exists():
        data = SCRATCH / "data"
        if (data / "postmaster.pid").exists():
            tool.run(f"{plan.server.programs}/pg_ctl", "stop", "--mode=immediate", f"--pgdata={data}", quiet=True)
        shutil.rmtree(SCRATCH)


def room(size: int) -> None:
    """Raise BackupError if the scratch cluster would use space that the server needs for WAL."""
    need, free = int(size * SPARE) + tool.reserve(SCRATCH), tool.free_bytes(SCRATCH)
    if free < need:
        raise BackupError(
            "too little disk space for a restore test",
            where=str(SCRATCH.parent), seen=f"{show.size(free)} free",
            allowed=f"{show.size(need)} (the data, some WAL and a reserve for the server)",
            run="free space; until then no restore test is possible",
        )  # fmt: skip


def preloaded(plan: Plan, names: Container[str]) -> list[str]:
    """Return those of the server's preloaded libraries that are in `names`."""
    chosen = next((each.text for each in plan.server.settings if each.name == "shared_preload_libraries"), "")
    return [name for name in chosen.split(",") if name in names]


class Scratch(recovery.Log):
    """A server on a restored directory: socket only, with limits at least as high as its primary's. It is also its log.

    It is this process's child. pg_ctl would return as soon as postmaster.pid is gone, before the server's last line and
    its exit, and could not stop one that has not written the file yet. Not by setpriv: the unit of the restore test
    forbids capset, which setpriv calls; it ends its processes, and `clear` ends the server of a test killed elsewhere.
    """

    def __init__(self, plan: Plan, data: Path) -> None:
        """Write its configuration files."""
        self.programs, self.data = Path(plan.server.programs), data
        (SCRATCH / "postgresql.conf").write_text("")
        (SCRATCH / "pg_hba.conf").write_text("local all postgres peer\nlocal all all scram-sha-256\n")
        (SCRATCH / "pg_ident.conf").write_text("")
        self.settings = {
            **recovery.limits(plan.server.programs, data),
            "config_file": f"{SCRATCH}/postgresql.conf", "hba_file": f"{SCRATCH}/pg_hba.conf",
            "ident_file": f"{SCRATCH}/pg_ident.conf", "listen_addresses": "", "port": str(PORT),
            "unix_socket_directories": f"{SCRATCH}/socket", "archive_mode": "off", "primary_conninfo": "", "ssl": "off",
            "shared_buffers": SHARED_BUFFERS, "logging_collector": "off",
            "shared_preload_libraries": ",".join(preloaded(plan, PRELOADED)),
            "log_destination": "stderr", "lc_messages": "C", "autovacuum": "off", "hot_standby": "on",
            "wal_retrieve_retry_interval": "200ms",
            "max_logical_replication_workers": "0",  # a restored subscription would take the live one's rows
            "synchronous_standby_names": "", "max_parallel_maintenance_workers": "0", "huge_pages": "off",
        }  # fmt: skip
        super().__init__(SCRATCH / "log")
        self.process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def serving(self, more: dict[str, str], *, wait: bool = False) -> Iterator[None]:
        """Run it with `more` settings; `wait` until it accepts connections, which a server in recovery may not.

        Raises BackupError.
        """
        settings = {**self.settings, **more}
        options = [f"--{name}={value}" for name, value in settings.items()]
        with system.running(
            self.programs / "postgres", "-D", self.data, *options,
            log=self.path, directory=SCRATCH, user=system.POSTGRES, stop=signal.SIGINT, wait_s=STOP_S,
        ) as self.process:  # fmt: skip
            if wait and not scratch_server.ready(self.process, self.data):
                reason = scratch_server.reason(self())
                raise BackupError("the scratch server does not start", where=str(self.data), seen=reason)
            yield

    def ended(self, _text: str) -> bool:
        """Whether its process has ended."""
        return self.process is None or self.process.poll() is not None
