"""Check calendar expressions with systemd-analyze, and find timers that will not elapse again.

Runs systemd-analyze and systemctl, changes nothing. Standard library only: the module host_plan sends this file to a
host. `fault` is pure.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from calendar import timegm
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ELAPSE = re.compile(r"(?:Next elapse|Iter(?:ation|\.) #\d+): \w+ (\d+-\d\d-\d\d \d\d:\d\d:\d\d) UTC")
"""A line of `systemd-analyze calendar --iterations=N` with TZ=UTC; "Iter." until systemd 252."""
ITERATIONS = 2
"""Enough to see a schedule that elapses once, and the interval of one that repeats."""


def elapses(schedules: Iterable[str]) -> dict[str, dict[str, Any]] | None:
    """Ask systemd-analyze for the next elapse times of each calendar expression; None where it is missing or too old.

    Each answer has `at`, the times as seconds of Unix time, and `said`, the error of an expression that is not valid.
    """
    found = {}
    for text in dict.fromkeys(schedules):
        words = ["systemd-analyze", "calendar", f"--iterations={ITERATIONS}", "--", text]
        try:
            done = _run(words)
        except FileNotFoundError:
            return None
        if "unrecognized option" in done.stderr:  # before systemd 242, which a controller may have
            return None
        times = [timegm(time.strptime(each, "%Y-%m-%d %H:%M:%S")) for each in ELAPSE.findall(done.stdout)]
        said = "" if done.returncode == 0 else done.stderr.strip().partition("\n")[0] or f"exit {done.returncode}"
        found[text] = {"at": times, "said": said}
    return found


def fault(load: str, active: str, sub: str) -> str:
    """Say why a timer that should be active will not elapse; "" if it will, or is stopped, which is another fault."""
    if load not in ("loaded", ""):
        return f"cannot be loaded ({load})"
    # systemd.timer(5): "elapsed" is active without a next time; "running" has none until its service ends.
    return "has no next elapse time" if active == "active" and sub == "elapsed" else ""


def faults(timers: Sequence[str]) -> dict[str, str]:
    """Return the fault of each timer that has one, by name; nothing on a host that systemd did not boot."""
    if not timers or not Path("/run/systemd/system").is_dir():
        return {}
    done = _run(["systemctl", "show", "--property=Id,LoadState,ActiveState,SubState", *timers])
    found = {}
    for block in done.stdout.strip().split("\n\n"):
        row = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        said = fault(row.get("LoadState", ""), row.get("ActiveState", ""), row.get("SubState", ""))
        if said:
            found[row.get("Id", "")] = said
    return found


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
