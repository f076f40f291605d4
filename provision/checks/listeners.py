"""Which processes listen on a TCP port, read from /proc and the cgroups as root. Reads only.

Standard library only: the module host_plan runs it on a bare host too, through plugins/module_utils.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

PROC = Path("/proc")
GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"))
"""Where cgroups are mounted: version 2, and systemd's own hierarchy of version 1."""
LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp (include/net/tcp_states.h, TCP_LISTEN)."""

ROOT = 0
"""User of the sockets that a program opens before it changes to a user of its own, as HAProxy does."""


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


def serves(group: str, main_pid: int, port: int) -> bool:
    """Return whether a running unit itself listens on a port; `group` and `main_pid` come from systemd."""
    inodes = listening(port)
    if not inodes:
        return False
    ours = members(group, main_pid)
    return any(owns(pid, inodes) for pid in ours) or any(_may_own(pid, port) for pid in ours)


def _may_own(pid: int, port: int) -> bool:
    """Return whether the socket's user allows it, which is all to compare in a container that hides open files."""
    with suppress(OSError):
        return hidden(pid) and bool({Path(PROC, str(pid)).stat().st_uid, ROOT} & owners(port))
    return False


def unit(pid: int) -> str:
    """Return the innermost service or scope of a process; "" where it has none or has ended."""
    with suppress(OSError):
        found = re.findall(r"[^/\n]+\.(?:service|scope)", Path(PROC, str(pid), "cgroup").read_text())
        return str(found[-1]) if found else ""
    return ""


def holder(inodes: set[str]) -> str:
    """Name the process that holds one of these sockets, with its unit; "" where there is none."""
    for path in sorted(PROC.glob("[0-9]*")):
        if owns(int(path.name), inodes):
            with suppress(OSError):
                name, of = (path / "comm").read_text().strip(), unit(int(path.name))
                return f"{name} (pid {path.name}{', ' + of if of else ''})"
    return ""


def process(pid: int) -> dict[str, Any]:
    """Describe a process: pid, the beginning of its command line, and its unit ("" outside of systemd)."""
    try:
        words = Path(PROC, str(pid), "cmdline").read_bytes().split(b"\0")
    except OSError:
        return {"pid": pid, "command": "unknown", "unit": ""}
    return {"pid": pid, "command": b" ".join(words[:4]).decode(errors="replace").strip(), "unit": unit(pid)}


def found(ports: Collection[int]) -> list[dict[str, Any]]:
    """Describe every socket that listens on one of the ports: port, address, and its process.

    The pid is 0 where the process keeps its open files from root, as in some containers. `units` then names the units
    that may hold the socket: those of processes whose open files are hidden too, with its user or, for root's, any.
    """
    sockets: dict[str, tuple[int, str, int]] = {}
    for name in ("tcp", "tcp6") if ports else ():
        with suppress(OSError):
            table = Path(PROC, "net", name).read_text()
            sockets |= {row[9]: (port, _address(row[1]), int(row[7])) for port in ports for row in rows(table, port)}
    holders: dict[str, int] = {}
    for link in PROC.glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):  # closed since
            inode = str(link.readlink()).removeprefix("socket:[").rstrip("]")
            if inode in sockets:
                holders.setdefault(inode, int(link.parts[-3]))
    unattributed = {user for inode, (_, _, user) in sockets.items() if inode not in holders}
    units = _hidden_units(unattributed)
    return [
        {
            "port": port,
            "address": address,
            **(process(holders[inode]) if inode in holders else {"pid": 0, "command": "unknown", "unit": ""}),
            "units": [] if inode in holders else units.get(user, []),
        }
        for inode, (port, address, user) in sockets.items()
    ]


def _hidden_units(users: Collection[int]) -> dict[int, list[str]]:
    """Return the units of the processes that hide their open files, by user id."""
    units: dict[int, set[str]] = {}
    for path in PROC.glob("[0-9]*") if users else ():
        with suppress(OSError):  # ended since
            possible = {path.stat().st_uid, ROOT} & set(users)
            if possible and hidden(int(path.name)):
                for user in possible:
                    units.setdefault(user, set()).add(unit(int(path.name)))
    return {user: sorted(names - {""}) for user, names in units.items()}


def _address(column: str) -> str:
    """Read an address of /proc/net/tcp or tcp6: 32-bit words in the byte order of this host, then the port."""
    text = column.partition(":")[0]
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
