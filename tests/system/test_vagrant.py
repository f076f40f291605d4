"""`vagrant up` from a clean clone, by Debian's own vagrant with podman's docker command: up, used, again, gone."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from tests.system import checkouts
from tests.system.playbooks import RECAP, Recap

URL = re.compile(r"postgresql://minion:\S+@127\.0\.0\.1:\d+/minion")


@dataclass
class Vagrant:
    """A clone, with a home of Vagrant's own beside it."""

    clone: Path
    home: Path
    timeout_s: int = 900
    environment: dict[str, str] = field(default_factory=dict)
    up: subprocess.CompletedProcess[str] | None = field(default=None)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run vagrant; its output and its errors come together."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("MINION_", "VAGRANT_"))}
        return subprocess.run(
            ["vagrant", *words],
            cwd=self.clone,
            env={**plain, "VAGRANT_HOME": str(self.home), "VAGRANT_NO_COLOR": "1", **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.timeout_s,
            check=False,
        )


def recap(output: str) -> dict[str, Recap]:
    return {found[1]: Recap(*(int(number) for number in found.groups()[1:])) for found in RECAP.finditer(output)}


def podman(*words: str) -> set[str]:
    return set(subprocess.run(["podman", *words], capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture(scope="module")
def vagrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vagrant]:
    made = Vagrant(checkouts.clone(tmp_path_factory.mktemp("clone")), tmp_path_factory.mktemp("home"))
    try:
        made.up = made.run("up", "--provider=docker", MINION_MEMORY="1024")
        if "no such object" in made.up.stdout:  # Vagrant inspects every container, and another test has removed one
            made.up = made.run("up", "--provider=docker", MINION_MEMORY="1024")
        yield made
    finally:
        with suppress(subprocess.TimeoutExpired):
            made.run("destroy", "-f")


def test_machine_is_there_and_its_url_leads_to_the_database(vagrant: Vagrant) -> None:
    assert vagrant.up is not None
    assert vagrant.up.returncode == 0, vagrant.up.stdout
    urls = URL.findall(vagrant.up.stdout)
    assert len(urls) == 1, vagrant.up.stdout
    assert "PostgreSQL 17 comes from the distribution, not the default 14 from PGDG" in vagrant.up.stdout
    with psycopg.connect(urls[0]) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        assert tables == (11,)
        assert connection.execute("SELECT current_setting('provision.guard')").fetchone() == ("off",)
        connection.execute("INSERT INTO agents (name) VALUES ('from the host of the machine')")


def test_both_ports_are_forwarded_to_this_machine_only(vagrant: Vagrant) -> None:
    name = (vagrant.clone / ".vagrant/machines/db1/docker/id").read_text()
    ports = subprocess.run(["podman", "port", name], capture_output=True, text=True, check=True).stdout
    forwarded = dict(re.findall(r"^(\d+)/tcp -> ([\d.]+):", ports, re.MULTILINE))
    assert {port: forwarded.get(port) for port in ("5432", "6432")} == {"5432": "127.0.0.1", "6432": "127.0.0.1"}


def test_guest_is_a_debian_with_systemd_and_has_the_memory_that_was_asked_for(vagrant: Vagrant) -> None:
    asked = vagrant.run("ssh", "db1", "-c", "systemctl is-system-running; cat /etc/os-release; id -un; sudo -n id -un")
    assert asked.returncode == 0, asked.stdout
    for word in ("running", "trixie", "vagrant", "root"):
        assert word in asked.stdout
    assert vagrant.up is not None
    assert "2 CPUs, 1024 MB" in vagrant.up.stdout


@pytest.mark.faults
def test_provisioning_again_changes_nothing(vagrant: Vagrant) -> None:
    again = vagrant.run("provision")
    assert again.returncode == 0, again.stdout
    assert {name: row.changed for name, row in recap(again.stdout).items()} == {"db1": 0}


def test_another_profile_is_refused_while_the_machine_is_there(vagrant: Vagrant) -> None:
    refused = vagrant.run("provision", MINION_PROFILE="prod")
    assert refused.returncode != 0
    assert "the machines of this directory have another profile" in refused.stdout


def test_destroy_leaves_nothing(vagrant: Vagrant) -> None:
    networks = podman("network", "ls", "--quiet")
    name = (vagrant.clone / ".vagrant/machines/db1/docker/id").read_text()
    assert name in podman("ps", "--all", "--quiet", "--no-trunc")
    gone = vagrant.run("destroy", "-f")
    assert gone.returncode == 0, gone.stdout
    assert name not in podman("ps", "--all", "--quiet", "--no-trunc")
    assert podman("network", "ls", "--quiet") <= networks
    assert podman("volume", "ls", "--quiet") == set() or name not in "".join(podman("volume", "ls", "--quiet"))
    assert not (vagrant.clone / ".provision/vagrant").exists()
    assert list((vagrant.clone / ".vagrant/machines").glob("*/*/id")) == []
