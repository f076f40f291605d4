"""Find the connection through which a run reaches this host, and the commands that run through it. Only reads /proc.

A command outlives a connection that breaks: sshd ends, the shell that it started goes on. So does a command of a local
run whose ansible-playbook was killed. Both still have the connection's mark in their environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

PROC = Path("/proc")
REMOTE, LOCAL = "SSH_CONNECTION", "PROVISION_RUN"
"""Environment variables that mark a connection: sshd sets the first, the action plugin host_plan the second."""


class Session(NamedTuple):
    """The process that lives as long as a connection, when it started (clock ticks since boot), and its mark."""

    pid: int = 0
    started: str = ""
    mark: str = ""

    @property
    def alive(self) -> bool:
        """Whether the connection is there; a zombie's is not."""
        try:
            fields = _stat(self.pid)
        except OSError:
            return False
        return self.pid > 0 and fields[19] == self.started and fields[0] != "Z"


def of(record: dict[str, Any]) -> Session:
    """Return the session of a lock's record; an empty one if an older version wrote the record."""
    found = record.get("session")
    return Session(int(found[0]), str(found[1]), str(found[2])) if isinstance(found, list) else Session()


def current() -> Session:
    """Return this process's session: the nearest sshd, or the ansible-playbook of a local run; or an empty one."""
    pid = os.getppid()
    below: list[int] = []
    while pid > 1:
        try:
            name = (PROC / str(pid) / "comm").read_text().strip()
            parent = int(_stat(pid)[1])
        except OSError:
            break
        remote = name.startswith("sshd")
        # An action of a local run is started by a short-lived worker with the same command line: go up to the first.
        local = _is_playbook(pid) and name != "sudo" and not _is_playbook(parent)
        if remote or local:
            wanted = f"{REMOTE if remote else LOCAL}="
            marks = [mark for each in below for mark in _environment(each) if mark.startswith(wanted)]
            return Session(pid, _stat(pid)[19], marks[-1] if marks else "")
        below.append(pid)
        pid = parent
    return Session()


def commands(mark: str, askers: set[int]) -> list[str]:
    """Describe the commands that run through a connection, without those of `askers` (pids of modules)."""
    if not mark:
        return []
    pids = sorted(int(path.name) for path in PROC.iterdir() if path.name.isdigit())
    ours = {pid for asker in askers for pid in _ancestors(asker)}
    # Ansible starts every command with a shell; programs that a command left in the background are not waited for.
    found = [
        pid for pid in pids if pid not in ours and _words(pid, "cmdline")[1:2] == ["-c"] and mark in _environment(pid)
    ]
    return [f"process {pid} ({_program(pid, pids)})" for pid in found]


def _program(pid: int, pids: list[int]) -> str:
    """Name the program that a shell finally runs, below sudo and Python."""
    parents = {each: _ancestors(each)[1:] for each in pids}
    last = max((each for each in pids if pid in parents[each]), key=lambda each: len(parents[each]), default=pid)
    try:
        return (PROC / str(last) / "comm").read_text().strip()
    except OSError:
        return "ended"


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        found.append(pid)
        try:
            pid = int(_stat(pid)[1])
        except OSError:
            break
    return found


def _is_playbook(pid: int) -> bool:
    return "ansible-playbook" in " ".join(_words(pid, "cmdline"))


def _environment(pid: int) -> list[str]:
    return _words(pid, "environ")


def _words(pid: int, name: str) -> list[str]:
    try:
        return (PROC / str(pid) / name).read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name (proc(5)): state, parent ... start time. Raises OSError."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
