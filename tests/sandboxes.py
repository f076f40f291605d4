"""Real hosts for tests: a sandbox in a project directory of its own, and the command line run against it.

Does IO on this machine as root or through sudo. Each directory is a project, so hosts of a test session meet neither
those of a developer nor those of another session; `Hosts.made` leaves nothing but the cached images.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provision.controller.containers import Container
from provision.controller.sandbox import Sandbox
from provision.distributions import DEFAULT_KEY, by_key
from provision.plan import packages

INSTALLED = sorted(
    name.format(major=by_key(DEFAULT_KEY).postgresql)
    for name in (
        *packages.TOOLKIT,
        *packages.TLS,
        *packages.SERVER,
        *packages.FIREWALL,
        *packages.BACKUP,
        *packages.BACKUP_REMOTE,
        *(packages.EXTENSIONS[name].package for name in ("vector", "pgaudit")),
    )
)
"""Packages of Debian 13's image for tests that are not about installing: unpacking them is a third of a first run."""
PROGRAM = Path(sys.executable).with_name("provision")
Answer = subprocess.CompletedProcess[str]


def provision(*words: str | Path, **options: object) -> Answer:
    """Run `provision` and return what it printed and its exit code."""
    settings = {"capture_output": True, "text": True, "check": False, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([str(PROGRAM), *map(str, words)], **settings)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Host:
    """A host that runs: where its inventory is, and how to do something in it."""

    sandbox: Sandbox
    container: Container

    @property
    def name(self) -> str:
        """Its name in the inventory and on the network."""
        return self.container.spec.name

    @property
    def address(self) -> str:
        """Its address on the network, which this machine reaches too."""
        return self.container.spec.address

    @property
    def ports(self) -> dict[int, int]:
        """The port of 127.0.0.1 for each published port of the host."""
        return self.container.ports

    @property
    def inventory(self) -> Path:
        """The generated inventory, with every host of the session that runs."""
        return self.sandbox.folder.inventory

    def run(self, command: str) -> Answer:
        """Run a shell command as root in the host."""
        return self.sandbox.run(self.container, "sh", "-c", command)

    def podman(self, *words: str) -> str:
        """Run podman on this host's container, as in `kill` or `stop --time=10`, and return what it printed."""
        command = [*self.sandbox.machine.prefix, "podman", *words, self.container.container]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    @property
    def gateway(self) -> str:
        """This machine's address on the host's network."""
        return self.run("ip route show default").stdout.split()[2]

    def cut_off(self) -> None:
        """Leave the host no route but to its own network, and no name service; gone with the container's restart."""
        pid = self.podman("inspect", "--format={{.State.Pid}}")
        inside = [*self.sandbox.machine.prefix, "nsenter", f"--target={pid}", "--net"]
        subprocess.run([*inside, "ip", "route", "del", "default"], check=True)
        assert self.run(": >/etc/resolv.conf").returncode == 0

    def ansible(self, *words: str) -> Answer:
        """Run an ad-hoc Ansible module on this host alone."""
        program = Path(sys.executable).with_name("ansible")
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
        command = [str(program), "-i", str(self.inventory), self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


class Hosts:
    """The hosts of one project directory."""

    def __init__(self, project: Path, packages: Sequence[str] = ()) -> None:
        """Keep the directory and the packages of the hosts; no host is made yet."""
        self.project = project
        self.sandbox = Sandbox(project, packages=packages)

    @property
    def inventory(self) -> Path:
        """The generated inventory."""
        return self.sandbox.folder.inventory

    def up(self, name: str, **wanted: str) -> Host:
        """Return a host, made if need be; `wanted` is os, memory, shm_size and group as the command has them."""
        return Host(self.sandbox, self.sandbox.up([name], wanted)[0])

    def provision(self, *words: str | Path, **options: object) -> Answer:
        """Run `provision sandbox` for this project."""
        return provision("sandbox", "--project", self.project, *words, **options)

    @classmethod
    @contextmanager
    def made(cls, project: Path, packages: Sequence[str] = ()) -> Iterator[Hosts]:
        """Give the hosts of a directory, and remove every one of them at the end."""
        hosts = cls(project, packages)
        try:
            yield hosts
        finally:
            hosts.sandbox.down()
