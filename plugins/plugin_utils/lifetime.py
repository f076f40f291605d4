"""End the workers of a run together with the run. Linux controllers only.

Ansible starts a worker for each task of each host and moves it into a session of its own. If ansible-playbook is
killed, or ends with its terminal, a worker goes on: it completes its task and reconnects if the connection breaks,
while the next run already changes the host.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)


class Bond:
    """Between a run's main process and every process that it forks from now on."""

    def __init__(self) -> None:
        """Load what the children call: they must not load a library themselves."""
        self._prctl = ctypes.CDLL(None).prctl
        self._main = os.getpid()
        self._forks = 0

    def before(self) -> None:
        """Note which process forks."""
        self._forks = os.getpid()

    def in_child(self) -> None:
        """Let the kernel end this worker with its parent; end at once if the parent has ended already."""
        if self._forks != self._main:
            return
        self._prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._main:
            os._exit(1)


def bind() -> None:
    """Bind the workers that an Ansible program forks from now on; call it once, before it forks."""
    if sys.platform == "linux" and Path(sys.argv[0]).name.startswith("ansible"):
        bond = Bond()
        os.register_at_fork(before=bond.before, after_in_child=bond.in_child)
