"""Prepare Debian-family hosts for Ansible: python3, sudo, and an admin user with an SSH key.

Does IO on many hosts in parallel through pyinfra; a failed host does not stop the others. Idempotent; a dry run only
reads. Never asks for a password. Refuses `root` as the admin and a private key.
"""

import re
import shlex
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.config import Config
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.api.operation import add_op, operation
from pyinfra.api.operations import run_ops
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.context import ctx_host, ctx_state, host
from pyinfra.facts.server import Command
from pyinfra.operations import apt, server

from provision.controller.machine import run
from provision.errors import UsageError

PACKAGES = ("python3", "python3-apt", "sudo")
CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 120  # a new cloud host may still run its first update
UNCHANGED, CHANGED, PENDING, FAILED = "ok", "changed", "would change", "failed"


@dataclass(frozen=True)
class Connection:
    """SSH options; empty or zero means the user's SSH configuration applies."""

    user: str = "root"
    port: int = 0
    key: str = ""
    known_hosts: str = ""


@dataclass(frozen=True)
class Outcome:
    """Result of one host: `status` is one of the four words above, `detail` lists the changes or the reason."""

    host: str
    status: str
    detail: str = ""


def check_admin(name: str) -> str:
    """Return a valid admin user name. Raises UsageError for root and for a name that Debian refuses."""
    if name == "root" or not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", name):
        allowed = "a lower-case letter, then letters, digits, _ and -, 31 characters at most, not root"
        raise UsageError("invalid admin user name", where="--user", seen=repr(name), allowed=allowed)
    return name


def read_public_key(path: Path) -> str:
    """Return the single public key in a file. Raises UsageError for anything else, especially a private key."""
    text = path.read_text(errors="replace").strip() if path.is_file() else ""
    answer = run(["ssh-keygen", "-l", "-f", str(path)]) if text else None
    if "PRIVATE KEY" in text or "\n" in text or answer is None or answer.returncode:
        seen = "a private key" if "PRIVATE KEY" in text else "no such file" if not path.is_file() else "something else"
        raise UsageError(
            "not a public key",
            where=f"--key {path}",
            seen=seen,
            allowed="one public key, as written by ssh-keygen to FILE.pub",
            run="ssh-keygen -t ed25519",
        )
    return text


@operation()
def install_packages() -> Generator[Any]:
    """Install the missing packages that Ansible and its apt module need."""
    query = "dpkg-query --show --showformat='${db:Status-Status}:${Package}\\n'"
    seen = host.get_fact(Command, f"{query} {' '.join(PACKAGES)} 2>/dev/null || true") or ""
    missing = [package for package in PACKAGES if f"installed:{package}" not in seen.split()]
    if not missing:
        host.noop("packages are installed")
        return
    wait = f"-o DPkg::Lock::Timeout={LOCK_TIMEOUT_S}"
    yield from apt.packages._inner(packages=missing, update=True, no_recommends=True, extra_install_args=wait)


@operation()
def allow_sudo(admin: str) -> Generator[str]:
    """Allow the admin passwordless sudo, by a drop-in that visudo has checked."""
    path, line = f"/etc/sudoers.d/{admin}", f"{admin} ALL=(ALL:ALL) NOPASSWD: ALL"
    seen = host.get_fact(Command, f"stat -c %a:%U:%G {path} 2>/dev/null && cat {path} || true")
    if seen == f"440:root:root\n{line}":
        host.noop(f"{path} is up to date")
        return
    # sudo skips names with a dot, so the new file has no effect until it is renamed.
    new = f"{path}.new"
    write = f"umask 0337 && rm -f {new} && echo {shlex.quote(line)} > {new}"
    yield f"{write} && visudo -cqf {new} && mv {new} {path} || {{ rm -f {new}; false; }}"


class _Failures(BaseStateCallback):
    """Keeps the reasons of connection failures, which pyinfra only logs."""

    def __init__(self) -> None:
        self.reasons: dict[Host, str] = {}

    def host_connect_error(self, state: State, host: Host, error: Exception) -> None:  # type: ignore[override]
        del state
        self.reasons[host] = f"cannot connect: {error}"


def bootstrap(
    names: Sequence[str], admin: str, public_key: str, connection: Connection, *, check: bool = False
) -> list[Outcome]:
    """Prepare hosts, or with `check` only report changes. A name is an SSH host or a pyinfra connector."""
    state = _state(names, connection)
    failures = _Failures()
    state.add_callback_handler(failures)  # type: ignore[no-untyped-call]
    _quietly(connect_all, state)
    for each in list(state.active_hosts):
        reason = _refusal(state, each) or _plan(state, each, admin, public_key)
        if reason:
            failures.reasons[each] = reason
            state.active_hosts.discard(each)
    if not check:
        _quietly(run_ops, state)
    outcomes = [_outcome(state, each, failures, check=check) for each in state.inventory]
    _quietly(disconnect_all, state)
    return outcomes


def _state(names: Sequence[str], connection: Connection) -> State:
    known_hosts = Path(connection.known_hosts or "~/.ssh/known_hosts").expanduser()
    known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known_hosts.touch(mode=0o600)  # keys of new hosts are appended, changed keys refused
    data = {
        "ssh_user": connection.user,
        "ssh_port": connection.port,
        "ssh_key": connection.key,
        "ssh_known_hosts_file": str(known_hosts),
        "ssh_strict_host_key_checking": "accept-new",
    }
    config = Config(CONNECT_TIMEOUT=CONNECT_TIMEOUT_S, ENV={"LC_ALL": "C"})  # type: ignore[no-untyped-call]
    given = {key: value for key, value in data.items() if value}
    try:
        return State(Inventory((list(names), given)), config)  # type: ignore[no-untyped-call]
    except PyinfraError as error:
        allowed = "names or addresses for SSH, @local, @podman/CONTAINER or another pyinfra connector"
        raise UsageError("cannot use these hosts", where=" ".join(names), seen=str(error), allowed=allowed) from None


def _quietly(step: Any, state: State) -> None:  # a pyinfra function
    """Run a step that raises if no host is left; each host's reason is already kept."""
    try:
        step(state)
    except PyinfraError:
        if state.active_hosts:
            raise


def _refusal(state: State, each: Host) -> str:
    """Enable sudo if needed. Return why a host cannot be prepared: not of the Debian family, or no sudo."""

    def ask(words: str) -> tuple[bool, str]:
        done, output = each.run_shell_command(StringCommand(words))
        return done, output.output.strip()

    with ctx_state.use(state), ctx_host.use(each):
        if not ask("test -f /etc/debian_version && command -v apt-get")[0]:
            return "not a Debian-family host"
        if ask("id -u")[1] == "0":
            return ""
        # pyinfra would prompt for a password if a line began with sudo's own message.
        allowed, seen = ask('seen=$(sudo -n true 2>&1) || { echo "$(id -un): $seen"; false; }')
        if not allowed:
            return f"sudo is refused for {seen}"
        each.data._sudo = True
        return ""


def _plan(state: State, each: Host, admin: str, public_key: str) -> str:
    try:
        add_op(state, install_packages, host=each, name="install " + ", ".join(PACKAGES))
        user = {"user": admin, "shell": "/bin/bash", "create_home": True, "public_keys": [public_key]}
        add_op(state, server.user, host=each, name=f"user {admin} with the key", **user)
        add_op(state, allow_sudo, admin, host=each, name=f"sudo for {admin}")
    except PyinfraError as error:
        return str(error)
    return ""


def _outcome(state: State, each: Host, failures: _Failures, *, check: bool) -> Outcome:
    if each in failures.reasons:
        return Outcome(each.name, FAILED, failures.reasons[each])
    changes = []
    with ctx_state.use(state), ctx_host.use(each):
        for op, data in state.ops[each].items():
            meta, title = data.operation_meta, ", ".join(state.get_op_meta(op).names)
            if not check and (not meta.is_complete() or meta.did_error()):
                seen = (meta.stderr or meta.stdout) if meta.is_complete() else "not run"
                return Outcome(each.name, FAILED, f"{title}: {seen.strip()}")
            if meta.will_change if check else meta.did_change():
                changes.append(title)
    status = UNCHANGED if not changes else PENDING if check else CHANGED
    return Outcome(each.name, status, "; ".join(changes))
