"""Preparation for `vagrant up`: the container image, the inventory variables, and the secrets of a profile.

Does IO on this machine. Files are in `.provision/vagrant`, which is removed with the last machine; the image is kept,
like the sandbox's. Refuses a private key. Never changes the user's own inventories.
"""

import json
import os
import shlex
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from provision.controller import containers, image
from provision.controller.bootstrap import read_public_key
from provision.controller.machine import Machine
from provision.controller.narration import Narration
from provision.controller.sandbox import Sandbox, versions
from provision.controller.vault import Vault, initialise
from provision.distributions import DEFAULT_KEY, DEFAULT_VM_KEY, by_key
from provision.errors import HostError, UsageError
from provision.plan.secrets import new_password

REPOSITORIES = ("inventory", "distribution")
CONTAINER_PROVIDER = "docker"
USER = "vagrant"  # Vagrant's login user
REMEMBERED = ("profile", "os", "memory", "cpus", "repository", "driver", "box")
SHM_SIZE = "1g"  # for parallel index builds
# Clients connect through a forwarded port, that is from the machine's own network; backups stay on the machine.
OVERRIDES = {
    "postgresql_listen_addresses": ["*"],
    "postgresql_allowed_networks": ["samenet"],
    "backup_allow_local_only": True,
}
CLUSTER = {"cluster_enabled": True, "tls_enabled": True}


@dataclass(frozen=True)
class Request:
    """Options of the Vagrantfile; `public_key` is the key of Vagrant's first login.

    `repository` selects the source of a virtual machine's versions: the inventory, or its distribution. With
    `addresses`, one for each machine, they are members of a cluster.
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
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Image and arguments of a container; empty for a virtual machine, which Vagrant creates from its box."""

    image: str = ""
    arguments: list[str] = field(default_factory=list)


def default_os(provider: str) -> str:
    """Return the key of the default distribution: a container's differs from a virtual machine's."""
    return DEFAULT_KEY if provider == CONTAINER_PROVIDER else DEFAULT_VM_KEY


def profiles(project: Path) -> list[str]:
    """List the profiles: the names of the files in profiles/."""
    return sorted(path.stem for path in (project / "profiles").glob("*.yml"))


def published_passwords(project: Path, profile: str) -> bool:
    """Return a profile's `access.published_passwords`: hosts may have the passwords in the project's inventory.

    Raises UsageError if the profile file does not have the key.
    """
    path = project / "profiles" / f"{profile}.yml"
    value = (yaml.safe_load(path.read_text()).get("access") or {}).get("published_passwords")
    if not isinstance(value, bool):
        raise UsageError(
            "key missing from a profile", where=f"{path}: access.published_passwords", allowed="true, false"
        )
    return value


def check(project: Path, request: Request, remembered: dict[str, Any]) -> None:
    """Raise UsageError for an unknown profile or repository, and for another profile than the machines have."""
    names = profiles(project)
    if request.profile not in names:
        raise UsageError("unknown profile", where="MINION_PROFILE", seen=request.profile, allowed=", ".join(names))
    variables = project / "inventories" / request.profile / "group_vars/all/main.yml"
    if not variables.exists():
        raise UsageError(
            "the profile has no inventory",
            where=str(variables),
            seen="no such file",
            allowed=f"an inventory that selects profile {request.profile}",
        )
    if request.repository not in REPOSITORIES:
        allowed = ", ".join(REPOSITORIES)
        raise UsageError("unknown repository", where="MINION_REPOSITORY", seen=request.repository, allowed=allowed)
    if request.addresses and not published_passwords(project, request.profile):
        raise UsageError(
            "Vagrant's machines are no cluster of this profile: it needs a backup host or a bucket",
            where="MINION_NODES", seen=f"MINION_PROFILE={request.profile}", allowed="MINION_PROFILE=dev",
        )  # fmt: skip
    made = remembered.get("profile", request.profile)
    if made != request.profile:
        raise UsageError(
            "the machines of this directory have another profile",
            where="MINION_PROFILE",
            seen=f"{request.profile}; they have {made}",
            allowed=made,
            run="vagrant destroy -f, then the same command again",
        )


def prepare(project: Path, request: Request, narration: Narration) -> Prepared:
    """Create what the machines need before they start; keep what exists. Raises ProvisionError."""
    folder = project / ".provision/vagrant"
    choices = folder / "choices.json"
    check(project, request, json.loads(choices.read_text()) if choices.exists() else {})
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables: dict[str, Any] = {}
    prepared = Prepared()
    if request.provider == CONTAINER_PROVIDER:
        prepared, variables = _container(project, request, Machine(narration))
    elif request.repository == "distribution":
        variables = versions(by_key(request.os, "MINION_OS"), narration)
    if not published_passwords(project, request.profile):
        write_inventory(project, folder, request.profile)
    hosts = {name: dict(variables) for name in request.machines}
    groups: dict[str, Any] = {"hosts": hosts}
    if request.addresses:
        for name, address in zip(request.machines, request.addresses, strict=True):
            hosts[name]["cluster_address"] = address
        groups["vars"] = dict(CLUSTER)
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": groups}, width=1000))
    remembered = {key: getattr(request, key) for key in REMEMBERED}
    remembered["nodes" if request.addresses else "machines"] = len(hosts)
    choices.write_text(json.dumps(remembered))
    return prepared


def write_inventory(project: Path, folder: Path, profile: str) -> None:
    """Write an inventory for Vagrant's machines: the variables of the profile's inventory, other hosts and secrets."""
    inventory, password = folder / profile, folder / "vault-password"
    variables = inventory / "group_vars/all"
    variables.mkdir(parents=True, exist_ok=True)
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": {"database": {}}}}))
    shutil.copyfile(project / "inventories" / profile / "group_vars/all/main.yml", variables / "main.yml")
    (variables / "vagrant.yml").write_text(yaml.safe_dump(OVERRIDES))
    if not password.exists():
        descriptor = os.open(password, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(new_password())
    initialise(Vault(inventory, password.read_text()))


def _container(project: Path, request: Request, machine: Machine) -> tuple[Prepared, dict[str, Any]]:
    if not machine.is_root:
        raise HostError(
            "Vagrant's containers run under root's podman",
            where=f"user id {os.geteuid()}",
            allowed="vagrant run as root, or `make up`, which only needs sudo",
            run="sudo vagrant up --provider=docker",
        )
    spec, base = Sandbox(project, machine).prepare(
        containers.spec_of({"os": request.os, "memory": f"{request.memory}m"})
    )
    tag = make_image(machine, base, request.os, read_public_key(request.public_key))
    return Prepared(tag, arguments(spec.memory, request.cpus)), spec.variables


def make_image(machine: Machine, base: str, os_name: str, public_key: str) -> str:
    """Build a Vagrant image from a sandbox image if missing; return its name."""
    recipe = containerfile(base, public_key)
    tag = image.derived_tag(image.VAGRANT_REPOSITORY, os_name, recipe)
    with machine.narration.stage(f"building the image {tag} (once)"):
        machine.apply(f"cannot build the {os_name} image for Vagrant", image.derive, tag, recipe)
    return tag


def containerfile(base: str, public_key: str) -> str:
    """Return the recipe: a sandbox image plus Vagrant's login user with sudo. Pure."""
    return f"FROM {base}\nRUN {user_script(public_key)}\n"


def user_script(public_key: str) -> str:
    """Return the shell command that creates Vagrant's login user on a machine with sudo. Pure."""
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
    """Return arguments of `docker run`: systemd, limits, and a supported runtime."""
    limited = [f"--memory={memory}", f"--cpus={cpus}"] if memory else []
    return [*containers.runtime(), "--systemd=always", f"--shm-size={SHM_SIZE}", *containers.limits(), *limited]


def values(prepared: Prepared) -> dict[str, Any]:
    """Return the values that the Vagrantfile reads."""
    return asdict(prepared)
