"""Which units run programs or libraries whose files a package has replaced: they wait for a restart. Reads only.

The kernel marks a replaced file that a process still maps as deleted (proc_pid_maps(5)), as needrestart reads it. Of
the server, sessions count too: an extension's library is loaded by sessions alone.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from provision.system import run

CGROUPS = Path("/sys/fs/cgroup")
DELETED = " (deleted)"
PROGRAMS = ("/usr/", "/lib/")
"""Files of packages; shared memory and temporary files are also marked as deleted."""


def replaced(unit: str) -> list[str]:
    """Return the replaced files that a unit's processes still use; [] for a unit that does not run."""
    group = run("systemctl", "show", "--property=ControlGroup", "--value", unit, check=False).stdout.strip()
    found: set[str] = set()
    if group:
        for folder in (CGROUPS / group.lstrip("/")).rglob("cgroup.procs"):
            with suppress(OSError):
                for pid in folder.read_text().split():
                    found |= set(files(_maps(pid)))
    return sorted(found)


def files(maps: str) -> list[str]:
    """Return the replaced files of /proc/PID/maps."""
    names = [line.split(maxsplit=5)[5] for line in maps.splitlines() if line.endswith(DELETED)]
    return [name.removesuffix(DELETED) for name in names if name.startswith(PROGRAMS)]


def _maps(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # the process has ended
        return ""
