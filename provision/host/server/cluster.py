"""Make, start, restart and checksum the cluster MAJOR/main by Debian's tools. Does IO, as root.

Refuses to delete data: a half-made cluster is moved aside. Under systemd, pg_ctlcluster passes start, stop and restart
on to systemctl.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import secure_path
from provision.database import ask, connect_pinned
from provision.errors import HostError
from provision.host.cluster import access
from provision.host.member import origin
from provision.host.server import patroni
from provision.plan.schema import Plan
from provision.system import POSTGRES, as_user, run

MARKER = Path("/etc/provision/cluster-being-made")
"""Exists while a cluster is made: the run that finds it was preceded by one that was killed."""
ASIDE = Path("/var/lib/postgresql")
SHOWN_LINES = 5


@dataclass(frozen=True)
class Postmaster:
    """What postmaster.pid says of a running server (its lines are listed in PostgreSQL's miscadmin.h)."""

    pid: int
    port: int
    socket_directory: str

    @classmethod
    def read(cls, data: Path) -> Postmaster | None:
        """Read it from a data directory; None where no server runs."""
        try:
            lines = secure_path.text(data / "postmaster.pid").splitlines()
            found = cls(int(lines[0]), int(lines[3]), lines[4].strip())
            about = Path(f"/proc/{found.pid}/stat").read_text()
        except (OSError, IndexError, ValueError):
            return None
        program, _, state = about.partition("(")[2].rpartition(") ")
        # Else the file is a crashed server's, which may still wait for its parent as a zombie.
        return found if program.startswith("postgres") and state[:1] != "Z" else None


def url(plan: Plan) -> str:
    """Return the socket URL of the running server, whose port may not be the plan's yet. Raises HostError."""
    data = Path(plan.server.data_directory)
    found = Postmaster.read(data)
    if found is None:
        raise HostError(
            "no PostgreSQL server runs on this host", where=str(data), run=f"journalctl -u {plan.server.unit} -n 50"
        )
    return plan.server.url("postgres", port=found.port, socket=found.socket_directory)


def create(plan: Plan, say: Callable[[str], None] = lambda _text: None) -> bool:
    """Make the cluster with checksums, UTF-8 and the plan's locale; False if it is complete. Raises HostError."""
    configuration, data = Path(plan.server.configuration_directory), Path(plan.server.data_directory)
    if (configuration / "postgresql.conf").exists() and not MARKER.exists():
        return False
    if data.is_mount():
        raise HostError(
            "the data directory is a mount point",
            where=str(data),
            seen="a mount point, which a restore could not rename",
            allowed="a directory below the mount point",
            run=f"mount that file system at {ASIDE} instead, then run again: {plan.site('postgresql')}",
        )
    if MARKER.exists():
        _move_aside({"configuration": configuration, "data": data}, say)
    MARKER.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    MARKER.touch()
    clones = plan.cluster is not None and not _brings_database(plan)
    _run(
        "pg_createcluster",
        f"--port={plan.server.port}",
        "--encoding=UTF8",
        f"--locale={plan.server.locale}",
        str(plan.server.major),
        "main",
        "--",
        "--data-checksums",
    )
    if clones:
        # Only Debian's configuration is used: this database is a minute old, and Patroni needs an empty directory.
        run("find", data, "-mindepth", "1", "-delete", user=POSTGRES, directory=Path("/"))
    MARKER.unlink()
    return True


def _brings_database(plan: Plan) -> bool:
    """Return whether this host makes the cluster's database, before there is one."""
    return not origin.initialised(plan) and origin.brings(plan) == access.required(plan).member


def _move_aside(sources: Mapping[str, Path], say: Callable[[str], None]) -> None:
    """Move the files of a killed run, with owners and modes, to a new directory."""
    filled = {name: path for name, path in sources.items() if path.is_dir() and any(path.iterdir())}
    if not filled:
        return
    aside = ASIDE / f"half-made-{int(time.time())}"
    say(f"an earlier run was killed while it created the cluster; its files were moved to {aside}")
    aside.mkdir(mode=0o700)
    for name, path in filled.items():
        with secure_path.parent(path) as source, secure_path.directory(aside) as target:
            # By descriptors, which postgres cannot exchange as it can the directories below its own.
            here = f"/proc/{os.getpid()}/fd"
            _run("mv", "--no-target-directory", f"{here}/{source}/{path.name}", f"{here}/{target}/{name}")


def start(plan: Plan) -> bool:
    """Start the server now and, with systemd, at every boot; False if it is so already. Raises HostError.

    One that Patroni runs is left to `provision member apply`.
    """
    if plan.server.patroni and (patroni.owns(plan) or not (plan.server.data / "PG_VERSION").exists()):
        return False
    if not plan.host.systemd:
        if Postmaster.read(Path(plan.server.data_directory)):
            return False
        control(plan, "start")
        return True
    unit, changed = plan.server.own_unit, False
    loaded = _output("systemctl", "show", "--property=NeedDaemonReload,DropInPaths", unit)
    if "NeedDaemonReload=yes" in loaded or (
        Path(plan.server.unit_file).exists() and plan.server.unit_file not in loaded
    ):
        _run("systemctl", "daemon-reload")
    if _output("systemctl", "is-enabled", unit) not in ("enabled", "static"):
        # Of Debian's generator it is only enabled-runtime, which follows the cluster's start.conf.
        _run("systemctl", "enable", unit)
        changed = True
    if _output("systemctl", "is-active", unit) not in ("active", "reloading"):
        control(plan, "start")
        changed = True
    return changed


def control(plan: Plan, action: str) -> None:
    """Run pg_ctlcluster (start, stop or restart). Raises HostError with the last words of the server."""
    words = ["pg_ctlcluster", str(plan.server.major), "main", action]
    if plan.server.patroni and patroni.owns(plan):
        words = ["systemctl", action, patroni.UNIT]
    try:
        _run(*words)
    except HostError as error:
        output = error.seen
        if plan.host.systemd:
            output = (
                _output("journalctl", "--unit", plan.server.unit, f"--lines={SHOWN_LINES}", "--output=cat") or output
            )
        raise HostError(
            f"the server did not {action}",
            where=plan.server.unit,
            seen=output,
            run=f"journalctl -u {plan.server.unit} -n 50",
        ) from None


NO_CHECKSUMS = (
    "the cluster has no checksums, so damage on the disk is noticed late or never: -e adopt_enable_checksums=true or, "
    "later, provision server checksums --enable turns them on, with the server stopped meanwhile"
)


def has_checksums(plan: Plan) -> bool:
    """Ask the running server whether its data has checksums. Raises DatabaseError."""
    with as_user():
        session = connect_pinned(url(plan), application="provision server")
    with session:
        return ask(session, "SHOW data_checksums") == [("on",)]


def enable_checksums(plan: Plan, say: Callable[[str], None] = lambda _text: None) -> bool:
    """Add checksums to a cluster without them; the server is down meanwhile and started again whatever happens.

    pg_checksums marks the cluster at its end alone, so that one that was interrupted is as good as before. False where
    the cluster has checksums. Raises HostError.
    """
    if has_checksums(plan):
        return False
    data = plan.server.data_directory
    say(f"writing checksums to {data}; the server is stopped meanwhile")
    try:
        control(plan, "stop")
        _run(f"{plan.server.programs}/pg_checksums", "--enable", "-D", data, user=POSTGRES)
    finally:
        if Postmaster.read(Path(data)) is None:
            control(plan, "start")
    return True


def _run(*words: str | Path, user: str = "") -> None:
    """Run a program with umask 022, since a hardened host's 027 would close directories to the server."""
    run(*words, user=user, umask=0o022)


def _output(*words: str) -> str:
    return run(*words, check=False).stdout.strip()
