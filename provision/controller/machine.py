"""Local facts and operations through pyinfra's `@local` connector, for sandboxes.

Does IO, as root or through `sudo -n`. Never asks for a password and never changes the machine's container settings.
Facts are not cached; operations are idempotent.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all
from pyinfra.api.exceptions import NestedOperationError, PyinfraError
from pyinfra.api.facts import FactBase
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import OperationMeta, add_op
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from pyinfra.operations import apt

from provision.controller.narration import Narration
from provision.errors import HostError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Packages, each with a file that only it installs: checking for a file needs neither dpkg nor privileges.
PACKAGES = {
    "podman": "/usr/bin/podman",
    "runc": "/usr/sbin/runc",  # podman's default, crun, refuses hybrid cgroups
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "netavark": "/usr/lib/podman/netavark",
    "aardvark-dns": "/usr/lib/podman/aardvark-dns",  # host names on the network
    "iptables": "/usr/sbin/iptables",
    "openssh-client": "/usr/bin/ssh-keygen",
}
LOCK = Path("/run/lock/provision-sandbox.lock")  # lockable by every user; shared by all projects
SEEN_LINES = 12  # last lines shown of a failed command's output
# pyinfra reports errors through logging; without a handler they would be printed as well.
logging.getLogger("pyinfra").addHandler(logging.NullHandler())
logging.getLogger("pyinfra").propagate = False


def run(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program without a shell and return its output; the caller checks the exit code."""
    settings = {"capture_output": True, "text": True, "check": False, **options}
    return subprocess.run(words, **settings)  # noqa: S603 - callers pass fixed words or the user's own command


class Machine:
    """Runs pyinfra operations and reads pyinfra facts on this machine as root."""

    def __init__(self, narration: Narration | None = None) -> None:
        """Check for root privileges. Raises HostError without them."""
        self.narration = narration or Narration()
        self.is_root = os.geteuid() == 0
        if not self.is_root:
            self._require_sudo()
        self.prefix = [] if self.is_root else ["sudo", "-n", "env", f"PATH={PATH}"]

    @staticmethod
    def _require_sudo() -> None:
        sudo = shutil.which("sudo")
        answer = run([sudo, "-n", "true"]) if sudo else None
        if answer is None or answer.returncode:
            raise HostError(
                "sandbox hosts need root privileges on this machine",
                where=f"user id {os.geteuid()}",
                seen=answer.stderr.strip() if answer else "sudo is not installed",
                allowed="root, or a user whose `sudo -n true` works",
                run="sudo -v, then the same command again; or run it as root",
            )

    def _state(self) -> State:
        config = Config(SUDO=not self.is_root, ENV={"PATH": PATH, "LC_ALL": "C"})  # type: ignore[no-untyped-call]
        state = State(Inventory((["@local"], {})), config)  # type: ignore[no-untyped-call]
        connect_all(state)
        state.is_executing = True  # operations now run as they are added
        return state

    def apply(self, what: str, operation: Callable[..., Any], *args: object, **kwargs: object) -> bool:
        """Run one pyinfra operation; return True if it changed anything. Raises HostError `what` with its output."""
        state = self._state()
        try:
            add_op(state, operation, *args, **kwargs)
        except (NestedOperationError, PyinfraError) as error:
            raise HostError(what, where="this machine", seen=last_output(state) or str(error)) from None
        return any(meta.did_change() for meta in results(state))

    def fact(self, fact: type[FactBase[Any]], *args: object) -> Any:
        """Read one pyinfra fact. Raises HostError if its command fails."""
        state = self._state()
        with ctx_state.use(state):
            try:
                return next(iter(state.inventory)).get_fact(fact, *args)
            except PyinfraError as error:
                raise HostError(f"cannot read {fact.__name__}", where="this machine", seen=str(error)) from None

    @contextlib.contextmanager
    def locked(self, path: Path | None = None) -> Iterator[None]:
        """Hold the sandbox lock of a project directory `path`, or of this machine.

        The kernel releases the lock if the process is killed.
        """
        if path is None:
            path = LOCK
            with contextlib.suppress(FileExistsError):
                os.close(os.open(LOCK, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o644))
        handle = os.open(path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with self.narration.stage(f"waiting for another `provision sandbox` that holds {path}"):
                    fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def install_packages(self, packages: Mapping[str, str] = PACKAGES) -> None:
        """Install missing packages (name to a file that only it installs) with apt. Raises HostError on failure."""
        missing = [package for package, path in packages.items() if not Path(path).exists()]
        if not missing:
            return
        if not shutil.which("apt-get"):
            raise HostError(
                "required programs are missing and this machine has no apt",
                seen=f"missing: {', '.join(missing)}",
                allowed="Debian 12 or newer, or these programs installed by other means",
            )
        with self.narration.stage(f"installing {', '.join(missing)} on this machine"):
            self.apply(
                f"cannot install {', '.join(missing)}",
                apt.packages,
                packages=missing,
                update=True,
                no_recommends=True,
                extra_install_args="-o DPkg::Lock::Timeout=120",
            )


def results(state: State) -> list[OperationMeta]:
    """Return the results of a state's operations."""
    return [data.operation_meta for host in state.ops.values() for data in host.values()]


def last_output(state: State) -> str:
    """Return the last error lines of failed operations, or their last lines if none is marked as an error."""
    failed = [meta for meta in results(state) if meta.is_complete() and meta.did_error()]
    lines = [line for meta in failed for line in (meta.stderr_lines or meta.stdout_lines) if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "Err:", "Error"))] or lines
    return "\n           ".join(errors[-SEEN_LINES:])
