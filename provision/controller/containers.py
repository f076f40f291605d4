"""Sandbox hosts as podman containers: labels tell what they are, facts read, operations change.

Nothing about a host is kept in files: labels and podman itself are the record, so nothing can drift apart.
Refuses containers and networks that this project did not make.
"""

import hashlib
import json
import re
import resource
import shlex
import shutil
from collections.abc import Generator, Iterable, Mapping
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
GROUPS = ("database", "backup", "client")
DATABASE_PORT, POOLER_PORT, SSH_PORT = 5432, 6432, 22
MAX_PROCESSES = 16384  # raising nproc to a caller's own 96365 was refused inside a virtual machine, 30000 was not
MAX_FILES = 65536
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Spec:
    """What a host was asked to be, and the inventory variables that follow from it."""

    name: str = ""
    os: str = DEFAULT_KEY
    memory: str = "2g"
    shm_size: str = "1g"
    group: str = "database"
    address: str = ""
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Container:
    """A host as podman has it: `ports` maps the container's port to the one on 127.0.0.1."""

    spec: Spec
    container: str
    state: str
    ports: dict[int, int]

    @property
    def running(self) -> bool:
        """Say whether it runs."""
        return self.state == "running"


def check_name(name: str) -> str:
    """Return a host name that DNS, podman and Ansible all take. Raises UsageError."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", name):
        allowed = "a lower-case letter, then letters, digits and hyphens, 32 characters at most"
        raise UsageError("bad host name", where="NAME", seen=repr(name), allowed=allowed)
    return name


def size_bytes(text: str, option: str) -> int:
    """Read a size such as 512m or 2g. Raises UsageError that names the option."""
    match = re.fullmatch(r"([1-9][0-9]*)([kmg]?)b?", text.lower())
    if not match:
        raise UsageError("bad size", where=option, seen=repr(text), allowed="a number with k, m or g: 256m, 2g")
    return int(match[1]) * UNITS[match[2]]


def spec_of(wanted: Mapping[str, Any]) -> Spec:
    """Return the specification of a new host; what is not wanted is the default. Raises UsageError. Pure."""
    spec = Spec(**wanted)
    size_bytes(spec.memory, "--memory")
    size_bytes(spec.shm_size, "--shm-size")
    if spec.group not in GROUPS:
        raise UsageError("unknown group", where="--group", seen=repr(spec.group), allowed=", ".join(GROUPS))
    return spec


def require_agreement(spec: Spec, wanted: dict[str, str]) -> None:
    """Raise HostError if a host that is there is not what is asked for now. Pure."""
    for key, value in wanted.items():
        if key == "memory" and not spec.memory:
            continue  # made where no limit binds
        have, option = getattr(spec, key), f"--{key.replace('_', '-')}"
        is_size = key in ("memory", "shm_size") and have
        if size_bytes(have, option) != size_bytes(value, option) if is_size else have != value:
            raise HostError(
                f"{spec.name} is there already and is not what {option} asks for",
                where=spec.name,
                seen=f"{option} {have}",
                allowed=f"the same, or a new host for {option} {value}",
                run=f"provision sandbox down {spec.name}, then the same command again",
            )


def prefix(project: Path) -> str:
    """Return the name of a project's network and the beginning of its containers' names."""
    return f"provision-{hashlib.sha256(str(project).encode()).hexdigest()[:8]}"


def limits() -> list[str]:
    """Return podman's options for limits, no higher than this process has: raising them may not be permitted."""
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
    """Prefer runc, which takes pure and hybrid cgroups; crun, podman's own choice, refuses the hybrid ones."""
    return ["--runtime=runc"] if shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") else []


class Containers(FactBase[list[Container]]):
    """Every container that a project's label marks; an empty project means all projects."""

    @staticmethod
    def default() -> list[Container]:
        """Return what there is where podman is not installed."""
        return []

    def requires_command(self, project: str) -> str:
        """Name the program whose absence means that there is nothing."""
        del project
        return "podman"

    def command(self, project: str) -> str:
        """Print podman's full record of each container as one JSON list."""
        ids = f"$(podman ps --all --quiet --filter label={shlex.quote(f'{LABEL}={project}')})"
        return f'ids="{ids}"; if test -n "$ids"; then podman container inspect $ids; else echo "[]"; fi'

    def process(self, output: Iterable[str]) -> list[Container]:
        """Read podman's records."""
        found = [parse_container(record) for record in json.loads("".join(output))]
        return sorted(found, key=lambda each: each.spec.name)


def parse_container(record: dict[str, Any]) -> Container:
    """Read one record of `podman container inspect`. Pure."""
    bindings = record["HostConfig"]["PortBindings"] or {}
    return Container(
        spec=Spec(**json.loads(record["Config"]["Labels"][SPEC])),
        container=record["Name"],
        state=record["State"]["Status"],
        ports={int(port.split("/")[0]): int(bound[0]["HostPort"]) for port, bound in bindings.items()},
    )


class Json(FactBase[Any]):
    """What a podman command prints as JSON; None where it fails or podman is not installed."""

    @staticmethod
    def default() -> None:
        """Return what there is where podman is not installed."""

    def requires_command(self, words: str) -> str:
        """Name the program."""
        del words
        return "podman"

    def command(self, words: str) -> str:
        """Run it; a failure is an empty answer."""
        return f"podman {words} 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> Any:
        """Read JSON, or nothing."""
        text = "".join(output).strip()
        return json.loads(text) if text else None


@operation()
def network(name: str, project: Path) -> Generator[str]:
    """Make the project's network, on which hosts find one another by name."""
    yield shlex.join(["podman", "network", "create", f"--label={LABEL}={project}", name])


@operation()
def create(spec: Spec, image: str, project: Path, ports: dict[int, int]) -> Generator[str]:
    """Make a container that is not started yet."""
    words = ["podman", *runtime(), "create", "--systemd=always", f"--hostname={spec.name}"]
    words += [f"--name={prefix(project)}-{spec.name}", f"--shm-size={spec.shm_size}", *limits()]
    words += [f"--network={prefix(project)}:ip={spec.address},alias={spec.name}"]
    words += [f"--memory={spec.memory}"] if spec.memory else []
    words += [f"--label={LABEL}={project}", f"--label={SPEC}={json.dumps(asdict(spec))}"]
    words += [f"--publish=127.0.0.1:{outer}:{inner}" for inner, outer in ports.items()]
    yield shlex.join([*words, image])


@operation()
def start(container: Container, public_key: Path) -> Generator[str]:
    """Let the project's key in, whether or not the host runs, and start it if it does not."""
    target = f"{container.container}:/home/{ADMIN}/.ssh/authorized_keys"
    yield shlex.join(["podman", "cp", str(public_key), target])
    if not container.running:
        yield shlex.join(["podman", *runtime(), "start", container.container])


@operation()
def remove(names: list[str], network_name: str) -> Generator[str]:
    """Remove containers at once (what is in them is disposable) and, if one is named, the network."""
    if names:
        yield shlex.join(["podman", "rm", "--force", "--time=0", "--volumes", *names])
    if network_name:
        yield shlex.join(["podman", "network", "rm", "--force", network_name])
