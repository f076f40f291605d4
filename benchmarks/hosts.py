"""Hosts, inventories and commands for the benchmarks. Does IO on this machine; leaves nothing but the cached images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provision.controller.containers import Container
from provision.controller.sandbox import Sandbox
from provision.controller.vault import Vault
from provision.plan.secrets import new_password

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LIMIT_S = 1800
"""Longest time of one command; a benchmark that hangs ends with an error."""


def run(*words: str, limit_s: int = LIMIT_S) -> str:
    """Run a command in the repository and return its output; its failure ends the benchmark."""
    settings = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{' '.join(words)[:300]}\nstopped after {limit_s} s") from None
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)[:300]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class Fresh:
    """Fresh sandbox hosts in a project of their own."""

    sandbox: Sandbox
    containers: tuple[Container, ...]

    @property
    def inventory(self) -> Path:
        """The generated inventory of the hosts."""
        return self.sandbox.folder.inventory

    def run(self, script: str) -> str:
        """Run a shell script as root on the first host and return its output."""
        return run(*self.sandbox.words(self.containers[0], "sh", "-euc", script))


@contextmanager
def fresh_hosts(*names: str) -> Iterator[Fresh]:
    """Make hosts and remove them at the end."""
    with tempfile.TemporaryDirectory(prefix="provision-bench-") as folder:
        sandbox = Sandbox(Path(folder))
        try:
            yield Fresh(sandbox, tuple(sandbox.up(list(names), {})))
        finally:
            sandbox.down()


@contextmanager
def production_inventory() -> Iterator[tuple[Path, Path]]:
    """Copy the prod inventory and give it secrets; yields the copy and its file with the vault's password."""
    with tempfile.TemporaryDirectory() as folder:
        inventory, key = Path(folder) / "prod", Path(folder) / "vault-password"
        shutil.copytree(ROOT / "inventories/prod", inventory)
        key.write_text(new_password())
        run(str(BIN / "provision"), "secrets", "init", str(inventory), "--vault-password-file", str(key))
        yield inventory, key


@dataclass(frozen=True)
class BenchHost:
    """A converged host: its name, and the password of each login role."""

    name: str
    passwords: Mapping[str, str]

    def words(self, script: str, user: str = "postgres") -> tuple[str, ...]:
        """Return the command line that runs a shell script on the host."""
        shell = ("runuser", "-u", user, "--", "bash", "-euo", "pipefail", "-c", script)
        return (str(BIN / "provision"), "sandbox", "exec", self.name, "--", *shell)

    def run(self, script: str, user: str = "postgres") -> str:
        """Run a shell script on the host and return its output."""
        return run(*self.words(script, user))


@contextmanager
def production_host(name: str, memory: str, variables: Mapping[str, object]) -> Iterator[BenchHost]:
    """Converge a host with the prod profile, an inventory and secrets of its own; remove all of them at the end."""
    with production_inventory() as (inventory, key):
        try:
            run(str(BIN / "provision"), "sandbox", "up", name, "--memory", memory)
            site = ("site.yml", "-i", str(inventory), "-i", ".provision/sandbox/inventory.yml", "--limit", name)
            secret = ("--vault-password-file", str(key))
            run(str(BIN / "ansible-playbook"), *site, *secret, "-e", json.dumps(dict(variables)))
            credentials = Vault(inventory, key.read_text()).read()["database_credentials"]
            yield BenchHost(name, {role: each["password"] for role, each in credentials.items()})
        finally:
            run(str(BIN / "provision"), "sandbox", "down", name)
