"""The hosts of a fleet: a coordinator and two workers of two members each, with etcd on three of them. Does IO."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pairs import DISTRIBUTION
from tests.sandboxes import Host, Hosts, provision
from tests.system.playbooks import Run
from tests.system.test_cluster import Members, gathered

NEEDED = {
    "PROVISION_CITUS_URI": "a package source that has postgresql-17-citus-14.0, as sandbox hosts reach it",
    "PROVISION_CITUS_KEY": "path of the source's public key",
}
GROUPS = {"db1": 0, "db2": 1, "db3": 1, "db4": 2, "db5": 2}
DCS = ("db1", "db2", "db3")
KEEPER = "keeper"
DECLARED, FIRST = "acme", "first"
"""A tenant of the inventory, and one that db1 had as a single host."""
EVERY = (*GROUPS, KEEPER)


def require() -> None:
    """Refuse to begin without the variables: to skip would look like success. Raises pytest.UsageError."""
    missing = [f"  {name}: {meaning}" for name, meaning in NEEDED.items() if not os.environ.get(name)]
    if missing:
        raise pytest.UsageError("\n".join(["set these environment variables (docs/fleet.md):", *missing]))


@dataclass(frozen=True)
class Fleet:
    """The hosts by name, and the file of variables that each run gets."""

    members: Members
    given: Path

    @property
    def hosts(self) -> dict[str, Host]:
        return self.members.hosts

    def site(self, *arguments: str, playbook: str = "site.yml", without: tuple[str, ...] = ()) -> Run:
        """Run a playbook for the whole fleet."""
        return self.members.play("-e", f"@{self.given}", *arguments, playbook=playbook, without=without)

    def join(self, groups: dict[str, int]) -> None:
        """Give each host its group in the inventory, and etcd its hosts."""
        self.members.configure(cluster=True, database_tenants=[{"name": DECLARED}])
        inventory = self.members.environment / "hosts.yml"
        tree: dict[str, Any] = yaml.safe_load(inventory.read_text())
        tree["all"]["children"]["dcs"]["hosts"] = {name: {} for name in DCS}
        inventory.write_text(yaml.safe_dump(tree))
        (self.members.environment / "host_vars").mkdir()
        for name, group in groups.items():
            (self.members.environment / f"host_vars/{name}.yml").write_text(f"citus_group: {group}\n")

    def primary(self, group: int) -> str:
        """Return the name of a group's primary, "" while there is none."""
        rows = self.members.view()
        return next(
            (str(each["Member"]) for each in rows if each["Role"] == "Leader" and int(each["Group"]) == group), ""
        )

    def run(self, command: str, group: int = 0) -> str:
        """Run a command that must succeed on a group's primary and return what it printed."""
        done = self.hosts[self.primary(group)].run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return str(done.stdout)

    def complete(self) -> bool:
        """Return whether every member runs, the replicas stream, and the coordinator has every group."""
        rows = self.members.view()
        states = {str(each["Member"]): str(each["State"]) for each in rows}
        leaders = [each for each in rows if each["Role"] == "Leader"]
        fine = set(states) == set(GROUPS) and set(states.values()) <= {"running", "streaming"}
        if not fine or len(leaders) != len(set(GROUPS.values())):
            return False
        return self.hosts[self.primary(0)].run("provision fleet status").returncode == 0

    def tenant(self, name: str) -> str:
        """Create a tenant, and return the password of its application's role."""
        made = json.loads(self.run(f"provision tenant add {name} --json"))
        return next(str(each["password"]) for each in made["logins"] if each["role"] == f"{name}_app")

    def places(self) -> dict[str, int]:
        """Return the group of each tenant."""
        return {
            each["tenant"]: each["group"] for each in json.loads(self.run("provision fleet status --json"))["tenants"]
        }

    def url(self, tenant: str, password: str, *names: str, port: int = 6432) -> str:
        """Return the URL of a tenant's application through some hosts, the coordinator's by default."""
        address = ",".join(f"{self.hosts[name].address}:{port}" for name in names or (self.primary(0),))
        authority = self.members.environment / "tls/ca.crt"
        return (
            f"postgresql://{tenant}_app:{password}@{address}/minion?sslmode=verify-full&sslrootcert={authority}"
            "&connect_timeout=3"
        )

    def sql(self, query: str, group: int = 0) -> str:
        """Ask the database of a group's primary as the superuser."""
        return self.members.sql(self.primary(group), query)


def made(sandbox: Hosts, folder: Path, groups: dict[str, int]) -> Fleet:
    """Create the hosts and the files of an inventory that is no fleet yet; converges nothing."""
    hosts = {name: sandbox.up(name, os="debian13") for name in groups}
    sandbox.up(KEEPER, group="backup", os="debian13")
    members = gathered(hosts, folder)
    members.configure(cluster=False, database_tenants=[{"name": DECLARED}])
    added = provision("secrets", "init", members.environment, "--vault-password-file", members.key)
    assert added.returncode == 0, added.stderr
    given = folder / "given.yml"
    given.write_text(
        yaml.safe_dump(
            {
                **DISTRIBUTION,
                "citus_source": {
                    "uri": os.environ["PROVISION_CITUS_URI"],
                    "key": str(Path(os.environ["PROVISION_CITUS_KEY"]).resolve()),
                },
            }
        )
    )
    return Fleet(members, given)
