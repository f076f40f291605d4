"""A fresh host with the prod profile for benchmarks, and commands on it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from provision.controller.vault import Vault
from provision.plan.secrets import new_password

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*words: str) -> str:
    """Run a command in the repository and return its output; a failure ends the benchmark."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)[:300]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


@dataclass(frozen=True)
class BenchHost:
    """A converged host: its name, and the passwords of its login roles."""

    name: str
    passwords: Mapping[str, str]

    def words(self, script: str, user: str = "postgres") -> tuple[str, ...]:
        """Return the command that runs a shell script on the host."""
        shell = ("runuser", "-u", user, "--", "bash", "-euo", "pipefail", "-c", script)
        return (str(BIN / "provision"), "sandbox", "exec", self.name, "--", *shell)

    def run(self, script: str, user: str = "postgres") -> str:
        """Run a shell script on the host and return its output."""
        return run(*self.words(script, user))


@contextmanager
def production_host(name: str, memory: str, variables: Mapping[str, object]) -> Iterator[BenchHost]:
    """Provide a host with the prod profile and its own inventory and secrets; remove all of them afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        inventory, key = Path(folder) / "prod", Path(folder) / "vault-password"
        shutil.copytree(ROOT / "inventories/prod", inventory)
        key.write_text(new_password())
        run(str(BIN / "provision"), "secrets", "init", str(inventory), "--vault-password-file", str(key))
        try:
            run(str(BIN / "provision"), "sandbox", "up", name, "--memory", memory)
            site = ("site.yml", "-i", str(inventory), "-i", ".provision/sandbox/inventory.yml", "--limit", name)
            secret = ("--vault-password-file", str(key))
            run(str(BIN / "ansible-playbook"), *site, *secret, "-e", json.dumps(dict(variables)))
            credentials = Vault(inventory, key.read_text()).read()["database_credentials"]
            yield BenchHost(name, {role: each["password"] for role, each in credentials.items()})
        finally:
            run(str(BIN / "provision"), "sandbox", "down", name)
