"""Sandbox hosts of a project: Debian containers with systemd and sshd on a network of their own.

Does IO on this machine only. `up` creates or starts missing hosts and leaves running ones alone; it refuses to change
the options of an existing host. Commands that change a project run one at a time.
"""

import ipaddress
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from provision.controller import containers, image, mirror, sockets
from provision.controller.containers import Container, Containers, Json, Spec
from provision.controller.inventory import Folder
from provision.controller.machine import Machine, run
from provision.controller.narration import Narration
from provision.distributions import Distribution, by_key
from provision.errors import HostError

DEV_INVENTORY = Path("inventories/dev")
BOOT_TIMEOUT_S = 60
PREFIX_LENGTH = 24
"""Of the subnets that podman chooses for its networks."""


class Sandbox:
    """The sandbox of one project directory."""

    def __init__(self, project: Path, machine: Machine | None = None, packages: Sequence[str] = ()) -> None:
        """Set the paths; no IO yet, except for a privilege check.

        New hosts have `packages` from the start; `image.containerfile` states which are possible.
        """
        self.project = project.resolve()
        self.packages = packages
        self.machine = machine or Machine()
        self.narration = self.machine.narration
        self.prefix = containers.prefix(self.project)
        self.folder = Folder(self.project)

    def hosts(self, names: Sequence[str] = ()) -> list[Container]:
        """Return the project's hosts, optionally only `names`, in alphabetical order."""
        found: list[Container] = self.machine.fact(Containers, str(self.project))
        return [each for each in found if not names or each.spec.name in names]

    def host(self, name: str = "") -> Container:
        """Return one host, by default the first database host. Raises HostError if there is none."""
        hosts = self.hosts()
        wanted = [each for each in hosts if not name or each.spec.name == name]
        if not wanted:
            raise HostError(
                f"no sandbox host{f' {name}' if name else ''}",
                where=str(self.project),
                seen=", ".join(each.spec.name for each in hosts) or "no hosts",
                run=f"provision sandbox up {name or 'db1'}",
            )
        return min(wanted, key=lambda each: (each.spec.group != "database", each.spec.name))

    def up(self, names: Sequence[str], requested: dict[str, str], mirror_url: str = "") -> list[Container]:
        """Create or start hosts; return them once systemd and sshd run.

        `requested` holds the given options of os, memory, shm_size and group; an existing host must match them.
        """
        spec = containers.spec_of(requested)
        for name in names:
            containers.check_name(name)
        distribution = by_key(spec.os)
        self.machine.install_packages()
        with self.machine.locked(self.project):
            info = self._require_podman()
            there = {each.spec.name: each for each in self.hosts()}
            for name in names:
                if name in there:
                    containers.require_agreement(there[name].spec, requested)
            self.folder.make_key(self.prefix)
            missing = [name for name in names if name not in there]
            if missing:
                spec, tag = self._prepare(spec, distribution, mirror_url, info)
            self._make_network([each.spec.address for each in there.values()])
            with self.machine.locked():  # a free port is reserved only once its host has started
                for name in missing:
                    with self.narration.stage(f"creating {name} ({spec.os})"):
                        self._make(replace(spec, name=name), tag)
                for name in there.keys() & set(names):
                    self._start(there[name])
            with self.narration.stage(f"waiting for {', '.join(names)}"):
                for each in self.hosts(names):
                    self._wait(each)
            return [each for each in self._write() if each.spec.name in names]

    def _require_podman(self) -> dict[str, Any]:
        """Return `podman info`. Raises HostError if podman does not work or lacks DNS between containers."""
        info: dict[str, Any] | None = self.machine.fact(Json, "info --format=json")
        if info is None:
            seen = run([*self.machine.prefix, "podman", "info"]).stderr.strip().splitlines()
            raise HostError("podman does not work on this machine", seen=seen[-1] if seen else "", run="podman info")
        backend = info["host"].get("networkBackend", "none")
        if backend != "netavark":
            raise HostError(
                "podman on this machine does not use netavark, so hosts could not resolve each other's names",
                seen=backend,
                allowed="netavark; podman keeps the backend that its first command found, until a reset, which"
                " removes every container and image on this machine",
                run="podman system reset",
            )
        return info

    def prepare(self, spec: Spec) -> tuple[Spec, str]:
        """Build the image of a host that the caller will create; see `_prepare`."""
        self.machine.install_packages()
        with self.machine.locked(self.project):
            info = self._require_podman()
            return self._prepare(spec, by_key(spec.os), "", info)

    def _prepare(
        self, spec: Spec, distribution: Distribution, mirror_url: str, info: dict[str, Any]
    ) -> tuple[Spec, str]:
        """Build the image if missing; return the specification with its variables, and the image's tag."""
        if "memory" not in info["host"].get("cgroupControllers", []):
            self.narration.note("no memory cgroup controller on this machine: --memory is ignored")
            spec = replace(spec, memory="")
        source = this_mirror(mirror_url)
        variables = versions(distribution, self.narration, mirror_url)
        tag = image.tag(distribution, source, image.local_certificates())
        if not self._exists("image", tag):
            mirror.require_release(source, distribution.codename)
            with self.narration.stage(f"building the {spec.os} image (once)"):
                failure = f"cannot build the {spec.os} image from {source.archive}"
                self.machine.apply(failure, image.build, tag, source, distribution.codename)
        if self.packages:
            tag = self._with_packages(tag, distribution, source)
        return replace(spec, variables=variables), tag

    def _with_packages(self, base: str, distribution: Distribution, source: mirror.Mirror) -> str:
        """Build the image with packages if missing; return its tag."""
        recipe = image.containerfile(base, self.packages, mirror.indexes(source, distribution.codename))
        tag = image.derived_tag(image.PACKAGES_REPOSITORY, distribution.key, recipe)
        if not self._exists("image", tag):
            with self.narration.stage(f"building the {distribution.key} image with packages (once)"):
                failure = f"cannot build the {distribution.key} image with packages"
                self.machine.apply(failure, image.derive, tag, recipe)
        return tag

    def _make_network(self, addresses: Sequence[str]) -> None:
        """Create a missing network, with the subnet of existing hosts, whose addresses are fixed."""
        if not self._exists("network", self.prefix):
            subnet = str(ipaddress.ip_network(f"{addresses[0]}/{PREFIX_LENGTH}", strict=False)) if addresses else ""
            self.machine.apply("cannot create the network", containers.network, self.prefix, self.project, subnet)

    def _make(self, spec: Spec, tag: str) -> None:
        """Create and start a host, again with other ports if another program took one of them meanwhile."""
        self._create(spec, tag)
        made = self.host(spec.name)
        try:
            self._start(made)
        except HostError:
            taken = [str(port) for port in made.ports.values() if not sockets.is_free(port)]
            if not taken:
                raise
            self.narration.note(f"another program took port {', '.join(taken)} of this machine: choosing other ports")
            self.machine.apply(f"cannot remove {spec.name}", containers.remove, [made.container], "")
            self._create(spec, tag)
            self._start(self.host(spec.name))

    def _create(self, spec: Spec, tag: str) -> None:
        self._require_free_name(spec.name)
        there = self.hosts()
        ports = sockets.choose((containers.DATABASE_PORT, containers.POOLER_PORT), fixed=not there)
        made = replace(spec, address=self._free_address([each.spec.address for each in there]))
        self.machine.apply(f"cannot create {spec.name}", containers.create, made, tag, self.project, ports)

    def _exists(self, kind: str, name: str) -> bool:
        return bool(self.machine.fact(Json, f"{kind} inspect {name}"))

    def _require_free_name(self, name: str) -> None:
        container = f"{self.prefix}-{name}"
        foreign = self.machine.fact(Json, f"container inspect {container}")
        if foreign:
            raise HostError(
                f"the name {container} belongs to a container that provision did not create",
                where="podman on this machine",
                seen=f"image {foreign[0]['ImageName']}, created {foreign[0]['Created']}",
                allowed="another host name",
                run=f"podman rm --force {container}",
            )

    def _free_address(self, taken: list[str]) -> str:
        """Return a free address of the project's network; it stays fixed, as the inventory requires."""
        subnet = self.machine.fact(Json, f"network inspect {self.prefix}")[0]["subnets"][0]
        used = {*taken, subnet["gateway"]}
        return next(str(each) for each in ipaddress.ip_network(subnet["subnet"]).hosts() if str(each) not in used)

    def _start(self, each: Container) -> None:
        """Install the project's SSH key, and start the host, with its data, if it is not running."""
        name, failure = each.spec.name, f"cannot start {each.spec.name}"
        if each.state == containers.PAUSED:
            self.narration.note(f"{name} was paused: resuming it")
            self.machine.apply(failure, containers.resume, each.container)
            each = self.host(name)
        elif each.state == containers.DEAD:
            self.narration.note(
                f"{name} has no processes, although podman reports it as running: starting it with its data"
            )
            self.machine.apply(failure, containers.mark_exited, each.container)
            each = self.host(name)
        self._require_free_ports(each)
        try:
            self.machine.apply(failure, containers.start, each, self.folder.public_key)
        except HostError as error:
            raise HostError(
                error.what,
                where=each.container,
                seen=error.seen,
                allowed="the cause fixed; or a new host, which loses this one's data",
                run=f"provision sandbox down {name}; provision sandbox up {name}",
            ) from None

    def _wait(self, each: Container) -> None:
        """Wait until systemd has booted and sshd answers."""
        until = time.monotonic() + BOOT_TIMEOUT_S
        state = ""
        while time.monotonic() < until:
            answer = self.run(each, "timeout", str(BOOT_TIMEOUT_S), "systemctl", "is-system-running", "--wait")
            state = answer.stdout.strip() or answer.stderr.strip()
            if state in ("running", "degraded") and sockets.greets(each.spec.address, containers.SSH_PORT):
                return
            time.sleep(0.1)
        failed = self.run(each, "systemctl", "--failed", "--plain", "--no-legend").stdout.strip()
        raise HostError(
            f"{each.spec.name} did not boot within {BOOT_TIMEOUT_S} s",
            where=each.container,
            seen=f"{state or 'no answer from systemd'}; {failed or 'no failed units'}",
            allowed="systemd running, and sshd on port 22",
            run=f"provision sandbox exec {each.spec.name} -- journalctl -b",
        )

    @staticmethod
    def _require_free_ports(each: Container) -> None:
        for inner, outer in each.ports.items():
            if not each.running and not sockets.is_free(outer):
                raise HostError(
                    f"{each.spec.name} cannot start: port {outer} of this machine, for its port {inner}, is in use",
                    where=f"127.0.0.1:{outer}",
                    seen=sockets.holder(outer),
                    allowed="that port freed, or a new host with another port",
                    run=f"provision sandbox down {each.spec.name}; provision sandbox up {each.spec.name}",
                )

    def words(self, each: Container, *command: str, options: Sequence[str] = ()) -> list[str]:
        """Return the podman command that runs a command in a host."""
        return [*self.machine.prefix, "podman", "exec", *options, each.container, *command]

    def run(self, each: Container, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a host as root and return its result."""
        return run(self.words(each, *command))

    def call(self, each: Container, *command: str) -> int:
        """Run a command in a host with this process's stdin and stdout; return its exit code."""
        if not each.running:
            name = each.spec.name
            raise HostError(
                f"{name} is not running", where=each.container, seen=each.state, run=f"provision sandbox up {name}"
            )
        options = ["--interactive", *(["--tty"] if os.isatty(0) and os.isatty(1) else [])]
        return run(self.words(each, *command, options=options), capture_output=False).returncode

    def url(self, each: Container) -> str:
        """Return the libpq URL of a host's database, with names and password from the dev inventory."""
        program = Path(sys.executable).with_name("ansible-inventory")
        inventories = ["-i", str(DEV_INVENTORY), "-i", str(self.folder.inventory)]
        answer = run([str(program), *inventories, "--host", each.spec.name], cwd=self.project)
        variables = json.loads(answer.stdout) if answer.returncode == 0 else {}
        try:
            owner, database = variables["database_owner"], variables["database_name"]
            password = variables["database_credentials"][owner]["password"]
        except KeyError as missing:
            raise HostError(
                f"the inventories have no database login for {each.spec.name}",
                where=str(self.project / DEV_INVENTORY),
                seen=answer.stderr.strip() or f"no {missing.args[0]}",
                allowed="database_owner, database_name, and the owner's password in database_credentials",
                run=f"ansible-inventory {' '.join(inventories)} --list",
            ) from None
        return url(owner, password, each.ports[containers.DATABASE_PORT], database)

    def down(self, names: Sequence[str] = (), *, images: bool = False) -> list[str]:
        """Remove hosts and return their names; after the last host, also remove network, keys and inventory."""
        with self.machine.locked(self.project):
            for name in names:
                self.host(name)
            gone = self.hosts(names)
            last = len(gone) == len(self.hosts())
            network = self.prefix if last and self._exists("network", self.prefix) else ""
            with self.narration.stage("removing " + (", ".join(each.spec.name for each in gone) or "leftovers")):
                doomed = [each.container for each in gone]
                self.machine.apply("cannot remove hosts", containers.remove, doomed, network)
            if last:
                self.folder.remove()
            else:
                self._write()
            if images:
                self._remove_images()
        return [each.spec.name for each in gone]

    def _remove_images(self) -> None:
        found = [
            self.machine.fact(Json, f"images --format=json --filter reference={name}") or []
            for name in image.REPOSITORIES
        ]
        images = [each for some in found for each in some]
        unused = list(dict.fromkeys(each["Id"] for each in images if not each.get("Containers")))
        with self.narration.stage(f"removing {len(unused)} unused of {len(images)} images"):
            self.machine.apply("cannot remove images", image.remove, unused)

    def _write(self) -> list[Container]:
        """Write the inventory of running hosts, and return them."""
        hosts = [each for each in self.hosts() if each.running]
        keys = {each.spec.name: self.run(each, "cat", f"{image.HOST_KEY}.pub").stdout for each in hosts}
        self.folder.write(hosts, {name: " ".join(key.split()[:2]) for name, key in keys.items()})
        return hosts


def this_mirror(mirror_url: str = "") -> mirror.Mirror:
    """Return this machine's Debian mirror. Raises HostError if it has none."""
    return mirror.find(platform.freedesktop_os_release().get("VERSION_CODENAME", ""), mirror_url)


def versions(distribution: Distribution, narration: Narration, mirror_url: str = "") -> dict[str, Any]:
    """Return the inventory variables for the distribution's own versions. Raises HostError without a mirror.

    The mirror is needed only if pgvector must be built.
    """
    variables: dict[str, Any] = distribution.variables()
    if distribution.pgvector_install_method == "source":
        with narration.stage("looking up the pgvector source on the Debian mirror"):
            found = mirror.pgvector_source(this_mirror(mirror_url))
        narration.note(f"pgvector {found.version} will be built from {found.url}")
        variables |= found.variables()
    return variables


def url(owner: str, password: str, port: int, database: str) -> str:
    """Return a percent-encoded libpq URL of a database on this machine. Pure."""
    user, secret, name = (quote(text, safe="") for text in (owner, password, database))
    return f"postgresql://{user}:{secret}@{sockets.LOCAL}:{port}/{name}"
