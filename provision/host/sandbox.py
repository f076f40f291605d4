"""Sandbox hosts of a project: real Debian hosts with systemd and sshd on a network of their own.

Does IO on this machine only. `up` mends what is missing and leaves a running host alone; it refuses to change one.
Keys, known_hosts and the inventory live in `.provision/sandbox` of the project and can be made again.
"""

import contextlib
import fcntl
import ipaddress
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from pyinfra.operations import server

from provision.errors import HostError, UsageError
from provision.host import containers, image, mirror
from provision.host.containers import Container, Containers, Json, Spec
from provision.host.machine import Machine, run

FOLDER = Path(".provision/sandbox")
DEV_INVENTORY = Path("inventories/dev")
BOOT_TIMEOUT_S = 60
DEFAULTS = {"os": "debian13", "memory": "2g", "shm_size": "1g", "group": "database"}


class Sandbox:
    """The sandbox of one project directory."""

    def __init__(self, project: Path, machine: Machine | None = None) -> None:
        """Keep the project; nothing is read or made yet."""
        self.project = project.resolve()
        self.machine = machine or Machine()
        self.prefix = containers.prefix(self.project)
        self.folder = self.project / FOLDER
        self.inventory, self.known_hosts = self.folder / "inventory.yml", self.folder / "known_hosts"
        self.key = self.folder / "id_ed25519"

    def hosts(self) -> list[Container]:
        """Return the hosts of the project, in alphabetical order."""
        found = self.machine.fact(Containers, str(self.project))
        assert isinstance(found, list)  # noqa: S101 - the fact's own type
        return found

    def host(self, name: str = "") -> Container:
        """Return one host; without a name the first database. Raises HostError if there is none."""
        hosts = self.hosts()
        chosen = [each for each in hosts if each.spec.name == name] if name else sorted(hosts, key=_database_first)
        if not chosen:
            raise HostError(
                f"there is no sandbox host{f' {name}' if name else ''}",
                where=str(self.project),
                seen=", ".join(each.spec.name for each in hosts) or "no hosts",
                run=f"provision sandbox up {name or 'db1'}",
            )
        return chosen[0]

    # Up

    def up(self, names: Sequence[str], wanted: dict[str, str], mirror_url: str = "") -> list[Container]:
        """Make or start hosts and return them when systemd runs and sshd answers.

        `wanted` holds os, memory, shm_size and group as far as they were given: a host that is there must agree.
        """
        for name in names:
            containers.check_name(name)
        check_wanted(wanted)
        self.machine.install_packages()
        with locked(self.machine):
            self._require_network_backend()
            there = {each.spec.name: each for each in self.hosts()}
            for name in names:
                if name in there:
                    require_agreement(there[name].spec, wanted)
            self._make_keys()
            missing = [name for name in names if name not in there]
            if missing:
                self._create(missing, {**DEFAULTS, **wanted}, list(there.values()), mirror_url)
            with self.machine.stage(f"starting {', '.join(names)}"):
                for each in self.hosts():
                    if each.spec.name in names:
                        self.machine.apply(f"cannot start {each.spec.name}", containers.start, each)
                        self._wait(each)
            self._write_inventory()
        return [each for each in self.hosts() if each.spec.name in names]

    def _require_network_backend(self) -> None:
        info = self.machine.fact(Json, "info --format=json")
        backend = info["host"].get("networkBackend") if info else "podman info failed"
        if backend != "netavark":
            raise HostError(
                "podman on this machine does not use netavark, so hosts would not find one another by name",
                seen=str(backend),
                allowed="netavark, which podman chooses on a machine without older CNI networks",
                run="podman system reset (removes every container of this machine), then try again",
            )
        self._memory_is_limited = "memory" in info["host"].get("cgroupControllers", [])

    def _create(self, names: list[str], wanted: dict[str, str], there: list[Container], mirror_url: str) -> None:
        release = image.release(wanted["os"])
        source = mirror.find(platform.freedesktop_os_release().get("VERSION_CODENAME", ""), mirror_url)
        tag = image.tag(wanted["os"], source, image.local_certificates())
        variables = host_variables(release)
        if release.pgvector_install_method == "source":
            with self.machine.stage("looking up pgvector's source in the Debian mirror"):
                found = mirror.pgvector_source(source)
            variables |= {
                "pgvector_version": found.version,
                "pgvector_source_url": found.url,
                "pgvector_source_sha256": found.sha256,
            }
        if not self._exists("image", tag):
            mirror.require_release(source, release.codename)
            with self.machine.stage(f"making the image of {wanted['os']} (once; it is kept)"):
                what = f"cannot make the image of {wanted['os']} from {source.archive}"
                self.machine.apply(what, image.build, tag, source, release.codename, present=False)
        self.machine.apply(
            "cannot make the network of the sandbox",
            containers.network,
            self.prefix,
            self.project,
            present=self._exists("network", self.prefix),
        )
        memory = wanted["memory"]
        if not self._memory_is_limited:
            with self.machine.stage(f"no memory controller on this machine: the limit of {memory} does not bind"):
                memory = ""
        addresses = self._free_addresses([each.spec.address for each in there])
        for name in names:
            self._require_free_name(name)
            ports = choose_ports(fixed=not there and name == names[0])
            spec = Spec(name, wanted["os"], memory, wanted["shm_size"], wanted["group"], next(addresses), variables)
            with self.machine.stage(f"making {name} ({wanted['os']})"):
                key = self.key.with_suffix(".pub")
                what = f"cannot make {name}"
                self.machine.apply(what, containers.create, spec, tag, self.project, ports, key)

    def _exists(self, kind: str, name: str) -> bool:
        return bool(self.machine.fact(Json, f"{kind} inspect {name}"))

    def _require_free_name(self, name: str) -> None:
        foreign = self.machine.fact(Json, f"container inspect {self.prefix}-{name}")
        if foreign:
            raise HostError(
                f"the name {self.prefix}-{name} belongs to a container that this project did not make",
                seen=f"image {foreign[0]['ImageName']}, made {foreign[0]['Created']}",
                allowed="another host name",
                run=f"podman rm --force {self.prefix}-{name}, if nobody needs it",
            )

    def _free_addresses(self, taken: list[str]) -> Iterator[str]:
        network = self.machine.fact(Json, f"network inspect {self.prefix}")[0]
        subnet = network["subnets"][0]
        used = {*taken, subnet["gateway"]}
        return (str(each) for each in ipaddress.ip_network(subnet["subnet"]).hosts() if str(each) not in used)

    def _make_keys(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.key.exists() and self.key.with_suffix(".pub").exists()):
            self.key.unlink(missing_ok=True)
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.prefix, "-f", str(self.key)]
            run(words, check=True)

    def _wait(self, each: Container) -> None:
        """Wait until systemd has finished booting and sshd greets; say what is wrong if it does not."""
        until = time.monotonic() + BOOT_TIMEOUT_S
        seen = ""
        while time.monotonic() < until:
            answer = self.run(each, "systemctl", "is-system-running", "--wait")
            seen = answer.stdout.strip() or answer.stderr.strip()
            if seen in ("running", "degraded") and greets(each.spec.address, containers.SSH_PORT):
                return
            time.sleep(0.1)
        failed = self.run(each, "systemctl", "--failed", "--plain", "--no-legend").stdout.strip()
        raise HostError(
            f"{each.spec.name} did not boot within {BOOT_TIMEOUT_S} s",
            where=each.container,
            seen=f"{seen or 'nothing'}; {failed or 'no failed units'}",
            allowed="systemd running and an SSH greeting on port 22",
            run=f"provision sandbox exec {each.spec.name} -- journalctl -b",
        )

    # Use

    def words(self, each: Container, *command: str, options: Sequence[str] = ()) -> list[str]:
        """Return the words that run a command in a host."""
        return [*self.machine.prefix, "podman", "exec", *options, each.container, *command]

    def run(self, each: Container, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a host, as root, and return what it printed."""
        return run(self.words(each, *command))

    def call(self, each: Container, *command: str) -> int:
        """Run a command in a host with this process's own input and output, and return its exit code."""
        options = ["--interactive", *(["--tty"] if os.isatty(0) and os.isatty(1) else [])]
        return run(self.words(each, *command, options=options), capture_output=False).returncode

    def url(self, each: Container) -> str:
        """Return the libpq URL of a host's database, from this machine, with the dev inventory's password."""
        program = Path(sys.executable).with_name("ansible-inventory")
        dev = self.project / DEV_INVENTORY
        words = [str(program), "-i", str(dev), "-i", str(self.inventory), "--host", each.spec.name]
        answer = run(words, cwd=self.project)
        password = (
            json.loads(answer.stdout).get("database_password") if answer.returncode == 0 and dev.exists() else None
        )
        if not password:
            raise HostError(
                "the inventory gives no database_password",
                where=str(dev),
                seen=answer.stderr.strip().splitlines()[0] if answer.stderr.strip() else "no such variable",
                allowed="database_password in group_vars/all of the dev inventory",
                run=f"ansible-inventory -i {DEV_INVENTORY} --list",
            )
        port = each.ports[containers.DATABASE_PORT]
        return f"postgresql://minion:{quote(password, safe='')}@127.0.0.1:{port}/minion"

    # Down

    def down(self, names: Sequence[str] = (), *, images: bool = False) -> list[str]:
        """Remove hosts and return their names; with the last goes the network, keys and inventory."""
        with locked(self.machine):
            hosts = self.hosts()
            unknown = set(names) - {each.spec.name for each in hosts}
            if unknown:
                self.host(min(unknown))
            gone = [each for each in hosts if not names or each.spec.name in names]
            last = len(gone) == len(hosts)
            network = self.prefix if last and self._exists("network", self.prefix) else ""
            with self.machine.stage("removing " + (", ".join(each.spec.name for each in gone) or "what is left")):
                self.machine.apply("cannot remove", containers.remove, [each.container for each in gone], network)
            if last:
                shutil.rmtree(self.folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self.folder.parent.rmdir()
            else:
                self._write_inventory()
            if images:
                self._remove_images()
        return [each.spec.name for each in gone]

    def _remove_images(self) -> None:
        what = f"podman images --quiet --filter reference={image.REPOSITORY} | xargs --no-run-if-empty podman rmi"
        with self.machine.stage("removing images that no other project uses"):
            self.machine.apply("cannot remove images", server.shell, [f"{what} || true"])

    def _write_inventory(self) -> None:
        hosts = [each for each in self.hosts() if each.running]
        lines = []
        for each in hosts:
            key = self.run(each, "cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.split()
            lines.append(f"{each.spec.address} {' '.join(key[:2])}\n")
        write(self.known_hosts, "".join(lines))
        write(self.inventory, render_inventory(hosts, self.key, self.known_hosts))


def _database_first(each: Container) -> tuple[bool, str]:
    return each.spec.group != "database", each.spec.name


def check_wanted(wanted: dict[str, str]) -> None:
    """Raise UsageError for an operating system, a size or a group that cannot be."""
    if "os" in wanted:
        image.release(wanted["os"])
    for key in ("memory", "shm_size"):
        if key in wanted:
            containers.size_bytes(wanted[key], f"--{key.replace('_', '-')}")
    if wanted.get("group", "database") not in containers.GROUPS:
        raise UsageError("unknown group", where="--group", seen=wanted["group"], allowed=", ".join(containers.GROUPS))


def require_agreement(spec: Spec, wanted: dict[str, str]) -> None:
    """Raise HostError if a host that is there is not what is asked for now."""
    for key, value in wanted.items():
        have = getattr(spec, key)
        same = have == value
        if key in ("memory", "shm_size") and have:
            same = containers.size_bytes(have, key) == containers.size_bytes(value, key)
        if not same:
            option = f"--{key.replace('_', '-')}"
            raise HostError(
                f"{spec.name} is there already and is not what {option} asks for",
                where=spec.name,
                seen=f"{option} {have}",
                allowed=f"{option} {value} for a new host",
                run=f"provision sandbox down {spec.name}, then the same command again",
            )


def host_variables(release: image.Release) -> dict[str, Any]:
    """Return the inventory variables of a host that has the Debian archive and nothing else."""
    return {
        "postgresql_version": release.postgresql_version,
        "postgresql_repository": "distribution",
        "pgvector_install_method": release.pgvector_install_method,
    }


def choose_ports(*, fixed: bool) -> dict[int, int]:
    """Return free ports on 127.0.0.1 for the database and the pooler: their own numbers if `fixed` and free."""
    chosen: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for inner in (containers.DATABASE_PORT, containers.POOLER_PORT):
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", inner if fixed else 0))
            except OSError:
                listener.bind(("127.0.0.1", 0))
            chosen[inner] = listener.getsockname()[1]
    return chosen


def greets(address: str, port: int) -> bool:
    """Say whether an SSH server greets at an address."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def render_inventory(hosts: Sequence[Container], key: Path, known_hosts: Path) -> str:
    """Return the Ansible inventory of hosts, by group; it is merged with `inventories/dev`. Pure."""
    groups: dict[str, Any] = {}
    for each in hosts:
        variables = {
            "ansible_host": each.spec.address,
            "ansible_port": containers.SSH_PORT,
            "ansible_user": image.ADMIN,
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known_hosts} -o StrictHostKeyChecking=yes",
            **each.spec.variables,
        }
        groups.setdefault(each.spec.group, {"hosts": {}})["hosts"][each.spec.name] = variables
    header = "# Made by `provision sandbox up`. Use: -i inventories/dev -i .provision/sandbox/inventory.yml"
    return header + "\n" + yaml.safe_dump({"all": {"children": groups}}, sort_keys=True)


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def locked(machine: Machine) -> Iterator[None]:
    """Let one sandbox command at a time change this machine; the kernel frees the lock of a killed one."""
    folder = Path("/run/lock") if Path("/run/lock").is_dir() else Path(tempfile.gettempdir())
    path = folder / "provision-sandbox.lock"
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o644))
    with path.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with machine.stage("waiting for another `provision sandbox` on this machine"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
