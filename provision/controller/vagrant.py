"""What `vagrant up` needs of this project: the image of a container, the variables of its hosts, prod's secrets.

Does IO on this machine. All of it lives in `.provision/vagrant`, which goes with the last machine; only the image is
kept, as the sandbox keeps its own. Refuses to read a private key and to touch the user's own inventories.
"""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pyinfra.api.operation import operation

from provision.controller import containers, image
from provision.controller.bootstrap import read_public_key
from provision.controller.machine import Machine
from provision.controller.narration import Narration
from provision.controller.sandbox import Sandbox, versions
from provision.controller.vault import Vault, initialise
from provision.distributions import DEFAULT_KEY, DEFAULT_VM_KEY, by_key
from provision.errors import HostError, UsageError
from provision.plan.secrets import new_password

PROFILES = ("dev", "prod")
REPOSITORIES = ("inventory", "distribution")
CONTAINER_PROVIDER = "docker"
USER = "vagrant"  # Vagrant logs in by this name everywhere
REMEMBERED = ("profile", "os", "memory", "cpus", "repository", "driver", "box")
SHM_SIZE = "1g"  # parallel index builds need it
# A machine behind a forwarded port: its clients come in through its own network, and its backups stay on it.
PROD_OVERRIDES = {
    "postgresql_listen_addresses": ["*"],
    "postgresql_allowed_networks": ["samenet"],
    "backup_allow_local_only": True,
}


@dataclass(frozen=True)
class Wanted:
    """What the Vagrantfile was asked for; `public_key` is the one that Vagrant logs in with at first.

    `repository` says where a virtual machine's versions come from: the inventory, or what its Debian release has.
    """

    provider: str
    profile: str
    os: str
    memory: int
    cpus: int
    machines: tuple[str, ...]
    public_key: Path
    repository: str = "inventory"
    driver: str = ""
    box: str = ""


@dataclass(frozen=True)
class Prepared:
    """What a container is made of; both empty for a virtual machine, whose box is Vagrant's own matter."""

    image: str = ""
    arguments: list[str] = field(default_factory=list)


def default_os(provider: str) -> str:
    """Return the key of the default distribution: a container's differs from a virtual machine's."""
    return DEFAULT_KEY if provider == CONTAINER_PROVIDER else DEFAULT_VM_KEY


def check(wanted: Wanted, remembered: dict[str, Any]) -> None:
    """Raise UsageError for a profile that there is not, or that is not the one that the machines were made with."""
    if wanted.profile not in PROFILES:
        raise UsageError("unknown profile", where="MINION_PROFILE", seen=wanted.profile, allowed=", ".join(PROFILES))
    if wanted.repository not in REPOSITORIES:
        allowed = ", ".join(REPOSITORIES)
        raise UsageError("unknown repository", where="MINION_REPOSITORY", seen=wanted.repository, allowed=allowed)
    made = remembered.get("profile", wanted.profile)
    if made != wanted.profile:
        raise UsageError(
            "the machines of this directory were made with another profile",
            where="MINION_PROFILE",
            seen=f"{wanted.profile}; they have {made}",
            allowed=made,
            run="vagrant destroy -f, then the same command again",
        )


def prepare(project: Path, wanted: Wanted, narration: Narration) -> Prepared:
    """Make what the machines need before they are there; what is there already stays. Raises ProvisionError."""
    folder = project / ".provision/vagrant"
    choices = folder / "choices.json"
    check(wanted, json.loads(choices.read_text()) if choices.exists() else {})
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables: dict[str, Any] = {}
    prepared = Prepared()
    if wanted.provider == CONTAINER_PROVIDER:
        prepared, variables = _container(project, wanted, Machine(narration))
    elif wanted.repository == "distribution":
        variables = versions(by_key(wanted.os, "MINION_OS"), narration)
    if wanted.profile == "prod":
        write_prod(project, folder)
    hosts = {name: dict(variables) for name in wanted.machines}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}, width=1000))
    remembered = {key: getattr(wanted, key) for key in REMEMBERED}
    choices.write_text(json.dumps({**remembered, "machines": len(wanted.machines)}))
    return prepared


def write_prod(project: Path, folder: Path) -> None:
    """Write an inventory for prod on machines of Vagrant: the project's own variables, other hosts, other secrets."""
    inventory, password = folder / "prod", folder / "vault-password"
    variables = inventory / "group_vars/all"
    variables.mkdir(parents=True, exist_ok=True)
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": {"database": {}}}}))
    shutil.copyfile(project / "inventories/prod/group_vars/all/main.yml", variables / "main.yml")
    (variables / "vagrant.yml").write_text(yaml.safe_dump(PROD_OVERRIDES))
    if not password.exists():
        descriptor = os.open(password, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(new_password())
    initialise(Vault(inventory, password.read_text()))


def _container(project: Path, wanted: Wanted, machine: Machine) -> tuple[Prepared, dict[str, Any]]:
    if not machine.is_root:
        raise HostError(
            "Vagrant's containers are made by root's podman",
            where=f"user id {os.geteuid()}",
            allowed="vagrant run by root, or `make up`, for which sudo is enough",
            run="sudo vagrant up --provider=docker",
        )
    spec, base = Sandbox(project, machine).prepare(containers.spec_of({"os": wanted.os, "memory": f"{wanted.memory}m"}))
    tag = make_image(machine, base, wanted.os, read_public_key(wanted.public_key))
    return Prepared(tag, arguments(spec.memory, wanted.cpus)), spec.variables


def make_image(machine: Machine, base: str, os_name: str, public_key: str) -> str:
    """Make the image of a Vagrant machine of a sandbox's image, unless it is there; return its name."""
    recipe = containerfile(base, public_key)
    tag = f"{image.VAGRANT_REPOSITORY}:{os_name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with machine.narration.stage(f"making the image {tag} (once; it is kept)"):
        machine.apply(f"cannot make the image of {os_name} for Vagrant", build, tag, recipe)
    return tag


def containerfile(base: str, public_key: str) -> str:
    """Return the recipe: a sandbox's image and the user that Vagrant logs in as, with sudo. Pure."""
    return f"FROM {base}\nRUN {user_script(public_key)}\n"


def user_script(public_key: str) -> str:
    """Return the shell command that makes the user that Vagrant logs in as, on a machine that has sudo. Pure."""
    home = f"/home/{USER}/.ssh"
    steps = (
        f"useradd --create-home --shell /bin/bash {USER}",
        f"install -d -m 0700 -o {USER} -g {USER} {home}",
        f"printf '%s\\n' {shlex.quote(public_key)} > {home}/authorized_keys",
        f"chown {USER}: {home}/authorized_keys && chmod 0600 {home}/authorized_keys",
        f"printf '%s\\n' '{USER} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{USER}",
        f"chmod 0440 /etc/sudoers.d/{USER} && visudo -cq",
    )
    return " && ".join(steps)


def arguments(memory: str, cpus: int) -> list[str]:
    """Return what `docker run` gets beside image, name and ports: systemd, limits, and a runtime that works. Pure."""
    limited = [f"--memory={memory}", f"--cpus={cpus}"] if memory else []
    return [*containers.runtime(), "--systemd=always", f"--shm-size={SHM_SIZE}", *containers.limits(), *limited]


@operation()
def build(tag: str, recipe: str) -> Generator[str]:
    """Make the image from a recipe on standard input, without any files beside it."""
    words = ["podman", "build", "--quiet", "--isolation=chroot", f"--tag={tag}", "-"]
    yield f"podman image exists {tag} || printf %s {shlex.quote(recipe)} | {shlex.join(words)}"


def values(prepared: Prepared) -> dict[str, Any]:
    """Return what the Vagrantfile reads."""
    return asdict(prepared)
