"""Which processes listen on a TCP port, read from /proc and the cgroups as root. Reads only; standard library only."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"))
"""Where cgroups are mounted: version 2, and systemd's own hierarchy of version 1."""
LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp (include/net/tcp_states.h, TCP_LISTEN)."""


def rows(table: str, port: int) -> list[list[str]]:
    """Return the columns of the sockets that listen on a port, from the text of /proc/net/tcp or tcp6."""
    found = [line.split() for line in table.splitlines()[1:]]
    return [row for row in found if row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _column(port: int, column: int) -> set[str]:
    """Return a column of this host's sockets that listen on a port."""
    found: set[str] = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError):  # no tcp6 where IPv6 is off
            found |= {row[column] for row in rows(Path(PROC, "net", name).read_text(), port)}
    return found


def listening(port: int) -> set[str]:
    """Return the inodes of this host's sockets that listen on a port."""
    return _column(port, 9)


def owns(pid: int, inodes: set[str]) -> bool:
    """Return whether a process has one of these sockets open; a process that has ended has none."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    with suppress(OSError):
        for link in Path(PROC, str(pid), "fd").iterdir():
            with suppress(OSError):  # closed since
                if str(link.readlink()) in wanted:
                    return True
    return False


def hidden(pid: int) -> bool:
    """Say whether a process keeps its open files from root, as other users' processes do in some containers."""
    try:
        for link in Path(PROC, str(pid), "fd").iterdir():
            link.readlink()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def owners(port: int) -> set[int]:
    """Return the user ids of this host's sockets that listen on a port."""
    return {int(uid) for uid in _column(port, 7)}


def members(group: str, main_pid: int) -> set[int]:
    """Return the processes of a unit: those of its cgroup and the ones below it, and its main process."""
    found = {main_pid} if main_pid else set()
    for mount in GROUPS if group else ():
        for path in (mount / group.lstrip("/")).rglob("cgroup.procs"):
            with suppress(OSError):
                found |= {int(pid) for pid in path.read_text().split()}
    return found


def holder(inodes: set[str]) -> str:
    """Name the process that holds one of these sockets, with its unit; "" where there is none."""
    for path in sorted(PROC.glob("[0-9]*")):
        if owns(int(path.name), inodes):
            with suppress(OSError):
                name = (path / "comm").read_text().strip()
                unit = re.search(r"[^/\n]+\.(?:service|scope)", (path / "cgroup").read_text())
                return f"{name} (pid {path.name}{', ' + unit[0] if unit else ''})"
    return ""
