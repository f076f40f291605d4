"""Which units run programs or libraries whose files a package has replaced: they wait for a restart. Reads only.

The kernel marks a replaced file that a process still maps as deleted (proc_pid_maps(5)), as needrestart reads it. Of
the server, sessions count too: an extension's library is loaded by sessions alone. A process is read as its own user,
because root needs CAP_SYS_PTRACE for it, which a container may lack (ptrace(2), "Ptrace access mode checking").
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from provision.errors import HostError
from provision.system import as_user, run

DELETED = " (deleted)"
PROGRAMS = ("/usr/", "/lib/")
"""Files of packages; shared memory and temporary files are also marked as deleted."""
PARENT = re.compile(r"\d+ \(.*\) \S (\d+)", re.DOTALL)
"""Of /proc/PID/stat (proc_pid_stat(5)): the fourth field, after a name that may contain spaces."""


def replaced(unit: str) -> list[str]:
    """Return the replaced files that a unit's processes still use; [] for a unit that does not run.

    Raises HostError where a process cannot be read.
    """
    main = main_process(unit)
    return of_processes(tree(main, parents())) if main else []


def main_process(unit: str) -> int:
    """Return the main process of a unit; 0 for one that does not run."""
    return int(run("systemctl", "show", "--property=MainPID", "--value", unit, check=False).stdout.strip() or 0)


def of_processes(pids: Iterable[int]) -> list[str]:
    """Return the replaced files that processes still use. Raises HostError where one cannot be read."""
    return sorted({name for pid in pids for name in files(_maps(pid))})


def parents() -> dict[int, int]:
    """Return the parent of each process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            seen = PARENT.match(path.read_text(errors="replace"))
        except OSError:  # the process has ended
            continue
        if seen:
            found[int(path.parent.name)] = int(seen[1])
    return found


def tree(root: int, above: dict[int, int]) -> set[int]:
    """Return a process and its descendants."""
    found, new = {root}, {root}
    while new:
        new = {pid for pid, parent in above.items() if parent in new} - found
        found |= new
    return found


def files(maps: str) -> list[str]:
    """Return the replaced files of /proc/PID/maps."""
    names = [line.split(maxsplit=5)[5] for line in maps.splitlines() if line.endswith(DELETED)]
    return [name.removesuffix(DELETED) for name in names if name.startswith(PROGRAMS)]


def _maps(pid: int) -> str:
    path = Path(f"/proc/{pid}/maps")
    try:
        owner = path.stat().st_uid
        with as_user(pwd.getpwuid(owner).pw_name) if owner else nullcontext():
            return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # the process has ended
        return ""
    except (PermissionError, KeyError) as error:
        raise HostError(
            "cannot read the files mapped by a process",
            where=str(path),
            seen=str(error),
            allowed="a process that root can read",
        ) from None
