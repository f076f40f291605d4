"""A restored copy of the cluster beside the original: its names, directories and configuration.

Does IO as root, and as postgres below its directories. A copy listens on localhost only, archives nothing, and does not
start at boot.
"""

from __future__ import annotations

import pwd
import shutil
import socket
from pathlib import Path

from provision import secure_path, system
from provision.errors import UsageError
from provision.host.backup import recovery
from provision.plan.schema import Plan

PREFIX = "restored"
HOME = Path("/var/lib/postgresql")


def name(port: int) -> str:
    """Return the cluster name of a copy."""
    return f"{PREFIX}{port}"


def data(port: int) -> Path:
    """Return its data directory."""
    return HOME / name(port)


def tablespaces(port: int) -> Path:
    """Return the folder of its tablespaces."""
    return HOME / f"{name(port)}.tablespaces"


def unit(plan: Plan, port: int) -> str:
    """Return its systemd unit."""
    return f"postgresql@{plan.server.major}-{name(port)}.service"


ALONE = (
    "citus.recover_2pc_interval = -1\ncitus.defer_shard_delete_interval = -1\n"
    "citus.node_conninfo = 'sslmode=verify-full sslrootcert=/nonexistent'\n"
)
"""Settings with which a copy of a fleet's node reaches no other node: it would end their prepared transactions."""


def free_port(port: int) -> None:
    """Raise UsageError if the port is privileged or in use."""
    with socket.socket() as probe:
        if not 1024 <= port <= 65535 or probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(
                "this port is not available for the copy", seen=str(port), allowed="a free port, 1024 to 65535"
            )


def configure(plan: Plan, port: int) -> None:
    """Write its configuration: the original's with other paths, another port and no archiving."""
    target, owner = plan.server.configuration.with_name(name(port)), pwd.getpwnam(system.POSTGRES)
    limits = "".join(f"{key} = {value}\n" for key, value in recovery.limits(plan.server.programs, data(port)).items())
    secure_path.make_directory(target, 0o755, (owner.pw_uid, owner.pw_gid))
    with system.as_user():
        _write(plan, target, port, limits)
    recovery.systemctl("daemon-reload")


def _write(plan: Plan, target: Path, port: int, limits: str) -> None:
    """Write the files as postgres, who owns the directories: root would follow links there."""
    shutil.copytree(plan.server.configuration, target, dirs_exist_ok=True)
    text = (target / "postgresql.conf").read_text().replace(str(plan.server.configuration), str(target))
    (target / "postgresql.conf").write_text(text.replace(str(plan.server.data), str(data(port))))
    (target / "start.conf").write_text("manual\n")  # do not start at boot
    (target / "conf.d/90-restored.conf").write_text(
        "# Written by provision restore. A copy must never archive into the original's repository.\n"
        f"port = {port}\nlisten_addresses = 'localhost'\narchive_mode = off\narchive_command = ''\n"
        f"cluster_name = '{name(port)}'\n"
        f"external_pid_file = '/var/run/postgresql/{plan.server.major}-{name(port)}.pid'\n"
        f"shared_buffers = 128MB\nhuge_pages = off\nwal_retrieve_retry_interval = 500ms\n"
        f"primary_conninfo = ''\nmax_logical_replication_workers = 0\n"
        f"logging_collector = off\nlog_destination = 'stderr'\n"
        f"{ALONE if plan.fleet else ''}{limits}"
    )
