"""A server of an upgrade that does not serve: it runs, but only postgres and root reach it. Does IO, as root.

A closed server listens on no network address, and its socket is in a directory of postgres with mode 0700. It archives
nothing and uses little memory. One file in conf.d makes the difference, so that a reboot starts it as it was.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from provision import secure_path, system
from provision.errors import DatabaseError, HostError
from provision.host.server import cluster
from provision.host.server.cluster import Postmaster
from provision.host.upgrade import side
from provision.host.upgrade.sessions import session_of
from provision.host.upgrade.side import Side
from provision.plan.schema import Plan
from provision.quoting import postgresql_conf
from provision.system import POSTGRES, run

FILE = Path("conf.d/90-provision-upgrade.conf")
POLL_S, START_S = 0.05, 60.0
PORT = 50000
"""Plus the major: the name of a closed server's socket. Debian's psql looks for a cluster with the default port."""
WORKERS = 8
"""Workers and slots of a closed server beyond one for each database: initial copies, and those of extensions."""
SETTINGS = {
    "listen_addresses": "",
    "default_transaction_read_only": "on",  # against a psql on this server; replication does not ask
    "archive_mode": "off",  # one stanza archives one server
    "huge_pages": "off",  # the other server has the reserved pages
    "shared_buffers": "128MB",
    "wal_level": "logical",
    "wal_retrieve_retry_interval": "200ms",  # time until a subscription connects again
    "cron.launch_active_jobs": "off",  # pg_cron would run its jobs here too
}


@dataclass(frozen=True)
class Server:
    """One server of an upgrade: its plan, its cluster, and the directory of its socket while it is closed."""

    plan: Plan
    side: Side
    folder: Path

    @property
    def closed(self) -> bool:
        """Whether its files say that it does not serve."""
        return self.file.exists()

    @property
    def file(self) -> Path:
        """The file that closes it."""
        return self.side.configuration / FILE

    @property
    def inside(self) -> Plan:
        """The plan with the socket of the closed server."""
        server = replace(self.plan.server, socket_directory=str(self.folder), port=PORT + self.side.major)
        return replace(self.plan, server=server)

    @property
    def here(self) -> Plan:
        """The plan with the socket where the server is now."""
        return self.inside if self.closed else self.plan

    def close(self, databases: int) -> None:
        """Restart the server so that no client reaches it any more; start it if it is closed. Raises HostError."""
        workers = databases + WORKERS
        counts = {"max_logical_replication_workers": workers, "max_replication_slots": workers + databases,
                  "max_wal_senders": workers + databases, "max_worker_processes": workers + WORKERS}  # fmt: skip
        place = {"unix_socket_directories": str(self.folder), "port": self.inside.server.port}
        settings = {**SETTINGS, **counts, **place}
        lines = ["# provision upgrade: this server does not serve."]
        lines += [f"{name} = {postgresql_conf(str(value))}" for name, value in settings.items()]
        self._change("\n".join(lines) + "\n")
        found = Postmaster.read(self.side.data)
        if found is None or found.socket_directory != str(self.folder):
            raise HostError(
                "the server does not use the settings that close it", where=str(self.file), seen=str(found),
                allowed=f"a socket in {self.folder}; ALTER SYSTEM must not set unix_socket_directories",
            )  # fmt: skip

    def open(self) -> None:
        """Restart the server so that it serves, with its own settings. Raises HostError."""
        self._change("")

    def start(self) -> None:
        """Start the server as it was, if it does not run. Raises HostError."""
        side.unseal(self.side)
        if self.side.unit:
            if not self._answers():
                cluster.start(self.plan)
        elif not self.side.running:
            words = ("start", "--wait", "--silent", f"--pgdata={self.side.configuration}")
            run(self.side.programs / "pg_ctl", *words, f"--log={self.folder}/log", user=POSTGRES, directory=Path("/"))

    def stop(self) -> None:
        """Stop the server; it can be started again. Raises HostError."""
        if self.side.unit and self.side.running:
            # Waits for a start: systemd would kill a server whose start it still waits for.
            run("systemctl", "start", self.side.unit, check=False)
        side.stop(self.side)

    def forget(self) -> None:
        """Remove the settings that close the server, which is stopped. Raises OSError."""
        secure_path.remove(self.file)

    def _answers(self) -> bool:
        """Start the unit and return as soon as the server answers; False if it does not, or would not at boot.

        pg_ctlcluster, for which systemctl waits, looks for the server every half second alone.
        """
        if run("systemctl", "is-enabled", "--quiet", self.side.unit, check=False).returncode:
            return False
        run("systemctl", "start", "--no-block", self.side.unit)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and not run("systemctl", "is-failed", self.side.unit, check=False).ok:
            with suppress(DatabaseError), session_of(self.here):
                return True
            time.sleep(POLL_S)
        return False

    def _change(self, text: str) -> None:
        places = (self.folder.parent, self.folder)
        run("install", "--directory", "--mode=0700", *places, user=POSTGRES, directory=Path("/"))
        there = secure_path.text(self.file) if self.file.exists() else ""
        if text != there:
            self.stop()
            if text:
                owner = self.side.configuration.stat()
                system.write(self.file, text, mode=0o644, owner=(owner.st_uid, owner.st_gid))
            else:
                secure_path.remove(self.file)
        self.start()
