"""Run playbooks as a user does, and read what they said."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.sandboxes import Host

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv/bin"
RECAP = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)\s+skipped=(\d+)", re.MULTILINE
)


@dataclass(frozen=True)
class Recap:
    """The last line of a run for one host."""

    ok: int
    changed: int
    unreachable: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class Run:
    """A run of ansible-playbook: exit code, everything that it printed, and its recap by host."""

    code: int
    output: str

    @property
    def recap(self) -> dict[str, Recap]:
        """Recaps by host name; of the controller only where it is the host."""
        rows = {
            found[1]: Recap(*(int(number) for number in found.groups()[1:])) for found in RECAP.finditer(self.output)
        }
        return {name: row for name, row in rows.items() if name != "localhost" or len(rows) == 1}

    def text(self) -> str:
        """The output on one line, since Ansible breaks and indents messages as it likes."""
        return re.sub(r"\s+", " ", self.output)


DEV = Path("inventories/dev")


def words(playbook: str, inventory: Path, *arguments: str, environment: Path = DEV) -> list[str]:
    """Give the command line of a run against a sandbox's inventory, beside that of an environment."""
    return [str(BIN / "ansible-playbook"), playbook, "-i", str(environment), "-i", str(inventory), *arguments]


def terminal() -> dict[str, str]:
    """Give a plain terminal's environment, so that output can be searched."""
    return {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "COLUMNS": "200"}


def watched() -> dict[str, str]:
    """Give the environment of a run whose output is read while it runs: each task's name comes before its work.

    Where skipped tasks are hidden (ansible.cfg), Ansible prints a name together with the first result.
    """
    return {**terminal(), "PYTHONUNBUFFERED": "1", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "1"}


def kill_commands(host: Host) -> None:
    """Kill everything that runs on a host through Ansible's connections, with the connections, at one moment."""
    tree = "tree() { echo $1; for child in $(pgrep -P $1); do tree $child; done; }"
    sessions = "$(pgrep -f '^sshd(-session)?: provision@')"
    host.run(f"{tree}; kill -KILL $(for session in {sessions}; do tree $session; done); true")


def play(playbook: str, inventory: Path, *arguments: str, environment: Path = DEV, timeout: int = 600) -> Run:
    """Run a playbook to its end."""
    done = subprocess.run(
        words(playbook, inventory, *arguments, environment=environment),
        cwd=ROOT,
        env=terminal(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Run(done.returncode, done.stdout)


def url(host: Host) -> str:
    """Give the libpq URL of a host's database as an application on this machine uses it."""
    vault = yaml.safe_load((ROOT / "inventories/dev/group_vars/all/vault.yml").read_text())
    password = vault["database_credentials"]["minion"]["password"]
    return f"postgresql://minion:{password}@127.0.0.1:{host.ports[5432]}/minion?sslmode=disable"
