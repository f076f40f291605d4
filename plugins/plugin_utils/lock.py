"""The controller's part of the host lock: this run's identity, the waiting time, taking over a dead run's lock."""

from __future__ import annotations

import getpass
import os
import platform
import time
from typing import Any

from ansible.plugins.action import ActionBase

POLL_S = 2


def identity() -> dict[str, Any]:
    """Name this run: its controller, its process and when that began, so that a dead one is recognised."""
    pid = os.getppid()
    me: dict[str, Any] = {
        "controller": platform.node(),
        "machine": _machine(),
        "pid": pid,
        "user": getpass.getuser(),
    }
    return {**me, "id": f"{me['machine']}:{pid}:{_started(pid)}"}


def kept(action: ActionBase) -> dict[str, Any]:
    """Return the argument with which a module on the host makes sure that this run still has the host lock.

    Without effect on a host that the task is delegated to: its lock belongs to the runs that converge that host.
    """
    return {} if action._task.delegate_to else {"run": identity()}


class Holder:
    """A run's request for the lock of one host."""

    def __init__(self, host: str, wait_s: int) -> None:
        """Begin to wait now."""
        self.host, self.wait_s = host, wait_s
        self.me = identity()
        self.held = False
        self.waiting = ""
        self._deadline = time.monotonic() + wait_s
        self._take_from = 0
        self._said = False

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the module that takes the lock."""
        return {"run": self.me, "take_from": self._take_from, "waits": time.monotonic() < self._deadline}

    def judge(self, result: dict[str, Any]) -> str:
        """Read the module's answer; give the refusal when the time is over, and wait before the next try otherwise."""
        self.waiting = ""
        holder = result.get("holder") or {}
        if result.get("taken", True):
            self.held = True
            return ""
        who = f"process {holder.get('pid')} of {holder.get('user')} on {holder.get('controller')}"
        unfinished = [str(command) for command in result.get("unfinished") or ()]
        if holder.get("machine") == self.me["machine"] and not _same_process(holder) and not unfinished:
            self._take_from = holder.get("holder", 0)
            return ""
        if unfinished:
            before = f"a killed run ({who}) has not ended on {self.host}: {unfinished[0]} still runs"
            after = "Wait until it has ended, or kill it, then run again."
        else:
            does = "is changing" if holder.get("holder") else "waits for"
            who += time.strftime(", since %H:%M:%S UTC", time.gmtime(holder.get("since", 0)))
            before = f"another run {does} {self.host}: {who}"
            after = "Run again when it has ended; a killed run releases the host lock when its last command has ended."
        if time.monotonic() >= self._deadline:
            return f"{before}. Nothing was changed here after waiting {self.wait_s} s (plan_lock_wait). {after}"
        if not self._said:
            self.waiting = f"{self.host}: waiting up to {self.wait_s} s: {before}"
            self._said = True
        time.sleep(POLL_S)
        return ""


def _same_process(holder: dict[str, Any]) -> bool:
    pid = int(holder.get("pid", 0))
    return str(holder.get("id", "")) == f"{holder.get('machine')}:{pid}:{_started(pid)}"


def _machine() -> str:
    """Name where a process id means something: this boot and this pid namespace; containers share host names."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as stream:  # noqa: PTH123
            return f"{platform.node()}/{stream.read().strip()}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return platform.node()


def _started(pid: int) -> str:
    """Return a process's start time in clock ticks since boot, or "" when it has ended (or without Linux)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:  # noqa: PTH123 - as short as it gets
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie has ended: its run will change nothing any more.
    return "" if fields[0] == "Z" else fields[19]
