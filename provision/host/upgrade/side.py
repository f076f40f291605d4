"""The two clusters of an upgrade, OLD/main and NEW/main: their files, their service, and what keeps one from starting.

Does IO as root. A sealed cluster cannot be started: Debian's tools refuse it (start.conf), systemd does not start it at
boot, and with `control` its pg_control has another name, which stops every other program too.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provision import secure_path, system
from provision.errors import HostError
from provision.host.server.cluster import Postmaster
from provision.plan.schema import Plan
from provision.system import POSTGRES, run

START = "start.conf"
CONTROL, MOVED = "global/pg_control", "global/pg_control.old"
"""pg_upgrade --link renames the first to the second when it begins to link (manual, pg_upgrade)."""
AUTO, DISABLED = "auto", "disabled"
STOP_S = 3600
"""Time for the checkpoint of a shutdown, as in Debian's unit of the server."""
STRAYS_S, POLL_S = 30.0, 0.05


@dataclass(frozen=True)
class Side:
    """One cluster: its major, the folder of its programs, its configuration and its data."""

    major: int
    programs: Path
    configuration: Path
    data: Path
    unit: str = ""
    """Its systemd unit; "" where systemd does not run it."""

    @classmethod
    def of(cls, plan: Plan) -> Side:
        """Return the cluster of a plan."""
        server = plan.server
        unit = f"postgresql@{server.major}-main.service" if plan.host.systemd else ""
        return cls(server.major, Path(server.programs), server.configuration, server.data, unit)

    @property
    def running(self) -> bool:
        """Whether a server runs on the data directory."""
        return Postmaster.read(self.data) is not None

    @property
    def linked(self) -> bool:
        """Whether pg_upgrade has begun to link this cluster's files."""
        return (self.data / MOVED).exists() and not (self.data / CONTROL).exists()


def stop(side: Side) -> None:
    """Stop the cluster's server and wait until its last process has ended. Raises HostError.

    A killed command leaves servers that no unit knows: one that has not written its postmaster.pid yet, or processes of
    a dead one, which still use its memory. pg_ctl alone sees neither, and calls a server that dies meanwhile one that
    does not shut down.
    """
    if side.unit:
        run("systemctl", "stop", side.unit, check=False, timeout=STOP_S)
    words = ("stop", "--mode=fast", "--wait", f"--timeout={STOP_S}", f"--pgdata={side.data}")
    deadline, said = time.monotonic() + STRAYS_S, ""
    while (pids := list(_within(side.data, "postgres"))) or side.running:
        if side.running:
            done = run(side.programs / "pg_ctl", *words, user=POSTGRES, directory=Path("/"), check=False)
            said = f"{done.last}; "
            deadline = time.monotonic() + STRAYS_S if done.ok else deadline
        if time.monotonic() > deadline:
            numbers = " ".join(map(str, pids))
            raise HostError(
                "the server does not stop", where=str(side.data), seen=f"{said}processes {numbers}",
                run=f"read its log; to end it (its next start recovers): kill -QUIT {numbers}; then repeat the command",
            )  # fmt: skip
        time.sleep(POLL_S)


def end_strays(work: Path) -> None:
    """Kill what a killed command left in pg_upgrade's working directory: pg_upgrade, its workers, pg_dump, pg_restore.

    Servers work in their data directories and are left to `stop`; an administrator may read logs there. Raises
    HostError for a process that stays.
    """
    deadline, pids = time.monotonic() + STRAYS_S, [0]
    while pids:
        pids = []
        for pid in _within(work):  # each at once: a server leaves this directory as it starts
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            pids.append(pid)
        if pids and time.monotonic() > deadline:
            raise HostError("processes of an earlier pg_upgrade do not end", where=str(work), seen=str(pids))
        time.sleep(POLL_S if pids else 0)


def _within(folder: Path, program: str = "") -> Iterator[int]:
    """Find postgres's processes with this working directory, and a program whose name begins so. Zombies have none."""
    place, owner = folder.resolve(), pwd.getpwnam(POSTGRES).pw_uid if os.geteuid() == 0 else os.geteuid()
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            ours = link.readlink() == place and link.parent.stat().st_uid == owner
            if ours and (link.parent / "comm").read_text().startswith(program):
                yield int(link.parent.name)


def seal(side: Side, *, control: bool = False) -> None:
    """Prevent every later start of the cluster. `control` also renames pg_control. Raises HostError, OSError."""
    if control and (side.data / CONTROL).exists():
        _rename(side.data / CONTROL, Path(MOVED).name)
    _start_conf(side, DISABLED)
    if side.unit:
        run("systemctl", "disable", "--quiet", side.unit, check=False)


def unseal(side: Side) -> None:
    """Allow the cluster to start again. Raises HostError, OSError."""
    relink(side)
    _start_conf(side, AUTO)


def relink(side: Side) -> None:
    """Give a cluster that pg_upgrade has begun to link its pg_control back. Raises OSError."""
    if side.linked:
        _rename(side.data / MOVED, Path(CONTROL).name)


def _start_conf(side: Side, mode: str) -> None:
    path = side.configuration / START
    if side.unit or path.exists():
        owner = secure_path.about(side.configuration)
        if owner is None:
            raise HostError("the cluster has no configuration", where=str(side.configuration))
        system.write(path, f"{mode}\n", mode=0o644, owner=(owner.st_uid, owner.st_gid))


def _rename(path: Path, name: str) -> None:
    with secure_path.parent(secure_path.rename(path, name)) as folder:
        secure_path.sync(folder)


def checkpoint(side: Side) -> str:
    """Return state and last checkpoint of a stopped cluster, by pg_controldata: equal while nothing changed its data.

    Raises HostError. Of a linked cluster, whose pg_control has another name, "".
    """
    if side.linked:
        return ""
    shown = run(
        side.programs / "pg_controldata", side.data, user=POSTGRES, directory=Path("/"), environment={"LC_ALL": "C"}
    ).stdout
    rows = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    return f"{rows['Database cluster state'].strip()} at {rows['Latest checkpoint location'].strip()}"


def keep_configuration(side: Side, folder: Path) -> None:
    """Copy the cluster's configuration, and the drop-in of its unit, into a folder of root: a way back needs them."""
    for source, name in _kept(side):
        target = folder / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            run("cp", "--archive", "--no-target-directory", source, target)


def put_back_configuration(side: Side, folder: Path) -> None:
    """Put back files of the configuration that are missing now; others stay as they are. Raises HostError."""
    for target, name in _kept(side):
        source = folder / name
        if source.is_dir():
            # As the owner of the directory, who could exchange it for a link that root would follow.
            user = POSTGRES if target == side.configuration else ""
            run("install", "--directory", "--mode=0755", target, user=user)
            words = ("--archive", "--no-clobber", "--no-target-directory")
            run("cp", *words, source, target, user=user, directory=Path("/"))


def _kept(side: Side) -> tuple[tuple[Path, str], ...]:
    drop_in = Path(f"/etc/systemd/system/{side.unit}.d") if side.unit else Path("/nonexistent")
    return (side.configuration, f"{side.major}-main"), (drop_in, f"{side.major}-main.service.d")
