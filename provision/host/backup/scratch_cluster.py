"""The scratch cluster of a restore test, beside the real one: socket only, no archiving, little memory. Does IO.

It has its own directory, which is always removed, also that of a killed restore test. One restore test runs at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path

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


class Scratch:
    """A server on a restored directory: socket only, with limits at least as high as its primary's."""

    def __init__(self, plan: Plan, data: Path) -> None:
        """Write its configuration files."""
        self.programs, self.data = plan.server.programs, data
        self.path = SCRATCH / "log"
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
            "log_destination": "stderr", "autovacuum": "off", "hot_standby": "on",
            "wal_retrieve_retry_interval": "200ms",
            "max_logical_replication_workers": "0",  # a restored subscription would take the live one's rows
            "synchronous_standby_names": "", "max_parallel_maintenance_workers": "0", "huge_pages": "off",
        }  # fmt: skip
        self.log = recovery.Log(self.path)

    def start(self, more: dict[str, str], *, wait: bool = False) -> None:
        """Start it; `wait` until it accepts connections, which a server in recovery may not."""
        options = " ".join(f"-c {name}='{value}'" for name, value in {**self.settings, **more}.items())
        self.log = recovery.Log(self.path)
        tool.run(
            f"{self.programs}/pg_ctl", "start", "--wait" if wait else "--no-wait", f"--pgdata={self.data}",
            f"--log={self.path}", f"--options={options}",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop it if it is running."""
        tool.run(f"{self.programs}/pg_ctl", "stop", "--mode=fast", f"--pgdata={self.data}", quiet=True)
