"""Controller files of a project's sandbox: key pair, known_hosts and the generated Ansible inventory.

All are in `.provision/sandbox`, which git ignores; `provision sandbox up` recreates them.
"""

import re
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from provision import system
from provision.controller.containers import SSH_PORT, Container
from provision.controller.image import ADMIN
from provision.controller.machine import run
from provision.errors import HostError

HEADER = "# Made by `provision sandbox up`. Use: -i inventories/dev -i .provision/sandbox/inventory.yml\n"


class Folder:
    """The files of one project's sandbox."""

    def __init__(self, project: Path) -> None:
        """Set the paths; writes nothing."""
        self.path = project / ".provision" / "sandbox"
        self.inventory, self.known_hosts = self.path / "inventory.yml", self.path / "known_hosts"
        self.key, self.public_key = self.path / "id_ed25519", self.path / "id_ed25519.pub"

    def make_key(self, comment: str) -> None:
        """Create the key pair unless both files exist."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.key.exists() and self.public_key.exists():
            return
        self.key.unlink(missing_ok=True)
        answer = run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(self.key)])
        if answer.returncode:
            raise HostError("cannot create an SSH key", where=str(self.key), seen=answer.stderr.strip())

    def write(self, hosts: Sequence[Container], host_keys: dict[str, str]) -> None:
        """Write known_hosts and the inventory, each atomically; `host_keys` maps host names to keys."""
        lines = [f"{each.spec.address} {host_keys[each.spec.name]}\n" for each in hosts]
        system.write(self.known_hosts, "".join(lines), mode=0o644)
        system.write(self.inventory, render(hosts, self.key, self.known_hosts), mode=0o644)

    def remove(self) -> None:
        """Remove every file, and `.provision` if it is then empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def escape(path: Path) -> str:
    """Write a path for ssh's configuration, between double quotes: ssh_config(5) splits at spaces and expands tokens.

    Raises HostError for a path that ssh cannot be given. Pure.
    """
    text = str(path)
    if "${" in text or "{{" in text or "\n" in text:
        raise HostError(
            "the project's path has characters that ssh and Ansible expand",
            where=text,
            seen="${, {{ or a line break",
            allowed="a path without them",
            run="move the project to another directory, then run the same command again",
        )
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def unescape(text: str) -> str:
    """Read a path that `escape` wrote, with or without the double quotes. Pure."""
    inner = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    return re.sub(r'\\(["\\])', r"\1", inner).replace("%%", "%")


def render(hosts: Sequence[Container], key: Path, known_hosts: Path) -> str:
    """Return the inventory of hosts by group as YAML, to be used with `inventories/dev`. Pure."""
    groups: dict[str, Any] = {}
    quoted = f'"{escape(known_hosts)}"'
    known = f"-o {shlex.quote(f'UserKnownHostsFile={quoted}')}"
    for each in hosts:
        variables = {
            "ansible_host": each.spec.address,
            "ansible_port": SSH_PORT,
            "ansible_user": ADMIN,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": escape(key),
            "ansible_ssh_common_args": f"{known} -o StrictHostKeyChecking=yes",
            **each.spec.variables,
        }
        groups.setdefault(each.spec.group, {"hosts": {}})["hosts"][each.spec.name] = variables
    return HEADER + yaml.safe_dump({"all": {"children": groups}}, width=1000)
