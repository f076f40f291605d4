"""Controller's half of host_lock: says who asks, waits for another run, takes over from a dead one of our own."""

from __future__ import annotations

import getpass
import os
import platform
import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

POLL_S = 2


class ActionModule(ActionBase):
    """Call the module until the lock is held, or say who has it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Give the module's result; a failure names the run that has the host and since when."""
        super().run(tmp, task_vars)
        task_vars = task_vars or {}
        host = task_vars.get("inventory_hostname", "?")
        me = {"controller": platform.node(), "machine": _machine(), "pid": os.getppid(), "user": getpass.getuser()}
        me["id"] = f"{me['machine']}:{me['pid']}:{_started(os.getppid())}"
        arguments = {**self._task.args, "run": me}
        wait = int(arguments.get("wait", 60))
        deadline = time.monotonic() + wait
        said = False
        while True:
            result: dict[str, Any] = self._execute_module(
                module_name="host_lock", module_args=arguments, task_vars=task_vars
            )
            holder = result.get("holder") or {}
            if result.get("failed") or arguments.get("state") == "released" or result.get("taken", True):
                return result
            if holder.get("machine") == me["machine"] and not _same_process(holder):
                arguments["take_from"] = holder.get("holder", 0)
                continue
            since = time.strftime("%H:%M:%S UTC", time.gmtime(holder.get("since", 0)))
            who = f"process {holder.get('pid')} of {holder.get('user')} on {holder.get('controller')}, since {since}"
            if time.monotonic() >= deadline:
                return {
                    "failed": True,
                    "msg": f"{host} is being changed by another run: {who}. Nothing was changed here; waited {wait} s "
                    "(preflight_lock_wait). Run again when it is over; a run that was killed frees the host by itself.",
                }
            if not said:
                Display().display(f"{host}: waiting up to {wait} s for another run ({who})")
                said = True
            time.sleep(POLL_S)


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
    """Give a process's start time in clock ticks since boot, or "" when it is gone (or the controller is no Linux)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:  # noqa: PTH123 - as short as it gets
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie has ended: its run will change nothing any more.
    return "" if fields[0] == "Z" else fields[19]
