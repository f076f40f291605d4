"""Sandbox hosts as podman containers: pyinfra facts to read them, operations to change them.

The only record of a host is its container with its labels. Containers and networks without this project's label are
never touched.
"""

import hashlib
import json
import os
import re
import resource
import shlex
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation

from provision.controller.image import ADMIN
from provision.distributions import DEFAULT_KEY
from provision.errors import HostError, UsageError

LABEL = "provision.project"
SPEC = "provision.host"
GROUPS = ("database", "dcs", "pooler", "backup", "client")
DATABASE_PORT, POOLER_PORT, SSH_PORT = 5432, 6432, 22
MAX_PROCESSES = 16384  # a virtual machine refused the caller's own limit, 96365, but accepted 30000
MAX_FILES = 65536
EXITS, KILLED = "/run/libpod/exits", 137
"""Where podman looks for the exit codes of root's containers, and the code of a killed one."""
DEAD, PAUSED = "dead", "paused"
ALIVE = ("running", "paused", "stopping")
"""States in which podman reports processes without checking for them."""
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Spec:
    """The options of a host, and the resulting inventory variables."""

    name: str = ""
    os: str = DEFAULT_KEY
    memory: str = "2g"
    shm_size: str = "1g"
    group: str = "database"
    address: str = ""
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """A host's container: `ports` maps its ports to ports of 127.0.0.1.

    `state` is podman's, or "dead" for a container without processes that podman reports as running.
    """

    spec: Spec
    container: str
    state: str
    ports: dict[int, int]

    @property
    def running(self) -> bool:
        """Return whether it runs."""
        return self.state == "running"


def check_name(name: str) -> str:
    """Return a host name valid for DNS, podman and Ansible. Raises UsageError."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", name):
        allowed = "a lower-case letter, then letters, digits and hyphens, 32 characters at most"
        raise UsageError("invalid host name", where="NAME", seen=repr(name), allowed=allowed)
    return name


def size_bytes(text: str, option: str) -> int:
    """Parse a size such as 512m or 2g into bytes. Raises UsageError with the option."""
    match = re.fullmatch(r"([1-9][0-9]*)([kmg]?)b?", text.lower())
    if not match:
        raise UsageError(
            "invalid size", where=option, seen=repr(text), allowed="a number with k, m or g, such as 256m or 2g"
        )
    return int(match[1]) * UNITS[match[2]]


def spec_of(requested: Mapping[str, Any]) -> Spec:
    """Return the specification of a new host, with defaults for options not given. Raises UsageError. Pure."""
    spec = Spec(**requested)
    size_bytes(spec.memory, "--memory")
    size_bytes(spec.shm_size, "--shm-size")
    if spec.group not in GROUPS:
        raise UsageError("unknown group", where="--group", seen=repr(spec.group), allowed=", ".join(GROUPS))
    return spec


def require_agreement(spec: Spec, requested: dict[str, str]) -> None:
    """Raise HostError if an existing host differs from the requested options. Pure."""
    for key, value in requested.items():
        if key == "memory" and not spec.memory:
            continue  # created without a memory controller
        have, option = getattr(spec, key), f"--{key.replace('_', '-')}"
        is_size = key in ("memory", "shm_size") and have
        if size_bytes(have, option) != size_bytes(value, option) if is_size else have != value:
            raise HostError(
                f"{spec.name} exists with another {option}",
                where=spec.name,
                seen=f"{option} {have}",
                allowed=f"{option} {have}, or a new host for {option} {value}",
                run=f"provision sandbox down {spec.name}, then the same command again",
            )


def prefix(project: Path) -> str:
    """Return a project's network name, which is also the prefix of its container names."""
    return f"provision-{hashlib.sha256(str(project).encode()).hexdigest()[:8]}"


def limits() -> list[str]:
    """Return podman's ulimit options, capped at this process's limits: raising them may be forbidden."""
    words = []
    for name, kind, most in (
        ("nofile", resource.RLIMIT_NOFILE, MAX_FILES),
        ("nproc", resource.RLIMIT_NPROC, MAX_PROCESSES),
    ):
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(hard, most)
        words.append(f"--ulimit={name}={value}:{value}")
    return words


def runtime() -> list[str]:
    """Prefer runc, which supports hybrid cgroups; podman's default, crun, refuses them."""
    return ["--runtime=runc"] if shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") else []


class Containers(FactBase[list[Container]]):
    """Every container with a project's label."""

    @staticmethod
    def default() -> list[Container]:
        """Return the value without podman."""
        return []

    def requires_command(self, project: str) -> str:
        """Name the required program."""
        del project
        return "podman"

    def command(self, project: str) -> str:
        """Inspect all containers as one JSON list."""
        ids = f"$(podman ps --all --quiet --filter label={shlex.quote(f'{LABEL}={project}')})"
        return f'ids="{ids}"; if test -n "$ids"; then podman container inspect $ids; else echo "[]"; fi'

    def process(self, output: Iterable[str]) -> list[Container]:
        """Parse the list."""
        found = [parse_container(record, is_init) for record in json.loads("".join(output))]
        return sorted(found, key=lambda each: each.spec.name)


def parse_container(record: dict[str, Any], alive: Callable[[int], bool]) -> Container:
    """Parse one record of `podman container inspect`; `alive` judges the container's first process. Pure."""
    bindings = record["HostConfig"]["PortBindings"] or {}
    state = record["State"]["Status"]
    return Container(
        spec=Spec(**json.loads(record["Config"]["Labels"][SPEC])),
        container=record["Name"],
        state=DEAD if state in ALIVE and not alive(record["State"]["Pid"]) else state,
        ports={int(port.split("/")[0]): int(bound[0]["HostPort"]) for port, bound in bindings.items()},
    )


def is_init(pid: int) -> bool:
    """Return whether a process is the first one of a container: a reused pid of another process is not.

    True where this user sees no processes of others (hidepid): a running host must not be taken for a dead one.
    """
    if not Path("/proc/1/status").exists():
        return True
    depth, inner, state = _namespaces(pid)
    return inner == 1 and depth > _namespaces(os.getpid())[0] and state not in ("Z", "X")


def _namespaces(pid: int) -> tuple[int, int, str]:
    """Return the depth of a process's pid namespace, its pid in there, and its state; zeros if it is gone."""
    try:
        rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0, ""
    pids = rows["NSpid"].split()
    return len(pids), int(pids[-1]), rows["State"].split()[0]


class Json(FactBase[Any]):
    """JSON output of a podman command; None if it fails or podman is not installed."""

    @staticmethod
    def default() -> None:
        """Return the value without podman."""

    def requires_command(self, words: str) -> str:
        """Name the required program."""
        del words
        return "podman"

    def command(self, words: str) -> str:
        """Run it; print nothing on failure."""
        return f"podman {words} 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> Any:
        """Parse JSON, if any."""
        text = "".join(output).strip()
        return json.loads(text) if text else None


@operation()
def network(name: str, project: Path, subnet: str = "") -> Generator[str]:
    """Create the project's network, where hosts resolve each other's names; with a given subnet, or a free one."""
    chosen = [f"--subnet={subnet}"] if subnet else []
    yield shlex.join(["podman", "network", "create", f"--label={LABEL}={project}", *chosen, name])


@operation()
def create(spec: Spec, image: str, project: Path, ports: dict[int, int]) -> Generator[str]:
    """Create a container without starting it."""
    words = ["podman", *runtime(), "create", "--systemd=always", f"--hostname={spec.name}"]
    words += [f"--name={prefix(project)}-{spec.name}", f"--shm-size={spec.shm_size}", *limits()]
    words += [f"--network={prefix(project)}:ip={spec.address},alias={spec.name}"]
    words += ["--cap-add=NET_ADMIN,NET_RAW"]  # firewall rules and VRRP in its own network, as on a real host
    words += [f"--memory={spec.memory}"] if spec.memory else []
    words += [f"--label={LABEL}={project}", f"--label={SPEC}={json.dumps(asdict(spec))}"]
    words += [f"--publish=127.0.0.1:{outer}:{inner}" for inner, outer in ports.items()]
    yield shlex.join([*words, image])


@operation()
def start(container: Container, public_key: Path) -> Generator[str]:
    """Install the project's SSH key, and start the container if it is stopped."""
    target = f"{container.container}:/home/{ADMIN}/.ssh/authorized_keys"
    yield shlex.join(["podman", "cp", str(public_key), target])
    if not container.running:
        yield shlex.join(["podman", *runtime(), "start", container.container])


@operation()
def mark_exited(name: str) -> Generator[str]:
    """Tell podman that a dead container has ended, by the file that its monitor would have written.

    Until then podman reports the container as running and can neither start nor stop it. Its data is kept.
    """
    # In one step and without a line break: podman lists no container at all while it cannot parse such a file.
    yield (
        f"id=$(podman container inspect --format '{{{{.Id}}}}' {shlex.quote(name)})"
        f" && printf {KILLED} >{EXITS}.$id && mv {EXITS}.$id {EXITS}/$id"
    )


@operation()
def resume(name: str) -> Generator[str]:
    """Resume a paused container."""
    yield shlex.join(["podman", "unpause", name])


@operation()
def remove(names: list[str], network_name: str) -> Generator[str]:
    """Remove containers without a graceful stop and, unless the name is empty, the network."""
    if names:
        yield shlex.join(["podman", "rm", "--force", "--time=0", "--volumes", *names])
    if network_name:
        yield shlex.join(["podman", "network", "rm", "--force", network_name])
