"""Start and stop the server that a restore works on. Does IO as root.

Of a single host and of a copy it is a unit of systemd. A member's server belongs to Patroni, which must not see it
before it is promoted: it is started by pg_ctl, without network addresses, so that no pooler reaches it in recovery.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from provision.host.backup import copies, tool
from provision.host.backup.recovery import systemctl
from provision.host.server.cluster import Postmaster
from provision.plan.schema import Plan

STOP_S = 3600
LOGS = Path("/var/log/postgresql")


class Runner(Protocol):
    """A server that can be started, without waiting for it, and stopped."""

    @property
    def log(self) -> Path:
        """The file of its messages."""
        ...

    def start(self) -> None:
        """Start it, if it does not run. Raises BackupError."""
        ...

    def stop(self) -> None:
        """Stop it and wait for its end. Raises BackupError."""
        ...


@dataclass(frozen=True)
class Unit:
    """A server of systemd, postgresql@MAJOR-NAME.service."""

    name: str

    @property
    def log(self) -> Path:
        """The file of its messages."""
        return LOGS / f"{self.name.removesuffix('.service').replace('@', '-')}.log"

    def start(self) -> None:
        """Start it. Raises BackupError."""
        systemctl("start", "--no-block", self.name)

    def stop(self) -> None:
        """Stop it. Raises BackupError."""
        systemctl("stop", self.name)


@dataclass(frozen=True)
class Detached:
    """A member's server while Patroni is stopped."""

    plan: Plan

    @property
    def log(self) -> Path:
        """The file of its messages."""
        return LOGS / f"postgresql-{self.plan.server.major}-main.log"

    def start(self) -> None:
        """Start it on its socket alone. Raises BackupError."""
        server = self.plan.server
        if Postmaster.read(server.data):
            return
        settings = {
            "config_file": f"{server.configuration_directory}/postgresql.conf", "listen_addresses": "",
            "port": server.port, "unix_socket_directories": server.socket_directory, "hot_standby": "on",
            "primary_conninfo": "", "primary_slot_name": "",  # Patroni's, of the time when it was a replica
        }  # fmt: skip
        options = shlex.join(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        tool.run(
            f"{server.programs}/pg_ctl", "start", "--no-wait", "--silent", f"--pgdata={server.data}",
            f"--log={self.log}", f"--options={options}",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop it and wait. Raises BackupError."""
        server = self.plan.server
        if Postmaster.read(server.data):
            words = ("stop", "--mode=fast", "--wait", f"--timeout={STOP_S}", f"--pgdata={server.data}")
            tool.run(f"{server.programs}/pg_ctl", *words)


def of(plan: Plan, beside: int = 0) -> Runner:
    """Return the runner of this host's server, or of the copy on a port."""
    if beside:
        return Unit(copies.unit(plan, beside))
    return Detached(plan) if plan.server.patroni else Unit(plan.server.unit)
