"""Find the connection through which a run reaches this host, and the commands that run through it. Only reads /proc.

A command outlives a connection that breaks: sshd ends, the shell that it started goes on. So does a command of a local
run whose ansible-playbook was killed. Who they belong to is known only while their parents live: containers do not let
root read another user's environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

PROC = Path("/proc")


class Process(NamedTuple):
    """A process: its pid, and when it started (clock ticks since boot)."""

    pid: int = 0
    started: str = ""

    @property
    def alive(self) -> bool:
        """Whether it has not ended; a zombie has."""
        try:
            fields = _stat(self.pid)
        except OSError:
            return False
        return self.pid > 0 and fields[19] == self.started and fields[0] != "Z"


def of(record: dict[str, Any]) -> Process:
    """Return the session of a lock's record; pid 0 if it is not known, or if an older version wrote the record."""
    found = record.get("session")
    return Process(int(found[0]), str(found[1])) if isinstance(found, list) else Process()


def current() -> Process:
    """Return the process that lives as long as the run's connection, or pid 0.

    That is the nearest sshd, or the ansible-playbook of a local run.
    """
    pid = os.getppid()
    while pid > 1:
        try:
            name = (PROC / str(pid) / "comm").read_text().strip()
            parent = int(_stat(pid)[1])
            # A local run's commands are started by short-lived workers with the same command line: go up to the first.
            local = _is_playbook(pid) and name != "sudo" and not _is_playbook(parent)
            if name.startswith("sshd") or local:
                return Process(pid, _stat(pid)[19])
        except OSError:
            break
        pid = parent
    return Process()


def commands(session: Process, askers: set[int]) -> list[Process]:
    """Return the commands that run through a living session, without those of `askers` (pids of modules).

    Ansible starts each command with a shell, below sshd or below a worker of a local run. What a command left in the
    background has another parent and is not waited for.
    """
    ours = {pid for asker in askers for pid in _ancestors(asker)}
    found: list[Process] = []
    below = _children(session.pid)
    while below:
        pid = below.pop()
        if _words(pid)[1:2] != ["-c"]:
            below += _children(pid)
        elif pid not in ours:
            try:
                found.append(Process(pid, _stat(pid)[19]))
            except OSError:
                continue
    return sorted(found)


def described(processes: list[Process]) -> list[str]:
    """Name the program that each shell finally runs, below sudo and Python."""
    found = []
    for process in processes:
        last = process.pid
        while below := _children(last):
            last = max(below)
        try:
            found.append(f"process {last} ({(PROC / str(last) / 'comm').read_text().strip()})")
        except OSError:
            found.append(f"process {process.pid}")
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


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
    return "ansible-playbook" in " ".join(_words(pid))


def _words(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name (proc(5)): state, parent ... start time. Raises OSError."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
