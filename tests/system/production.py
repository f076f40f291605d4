"""Two production hosts that every test of the prod profile shares: a database, and its peer on the same network.

The peer is the host of the group `backup`, and the client that uses and attacks the database from outside. Whoever
breaks something on them mends it again; a test that cannot, makes hosts of its own in the fixture `project`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from provision.controller.vault import Vault
from provision.plan.secrets import new_password
from tests.sandboxes import Host, Hosts, provision
from tests.system.playbooks import ROOT, Run, play


@dataclass(frozen=True)
class Production:
    """The hosts, and an inventory of their own beside the one that the sandbox generates."""

    database: Host
    peer: Host
    inventory: Path
    key: Path

    def play(self, *arguments: str, playbook: str = "site.yml", timeout: int = 900) -> Run:
        """Run a playbook against both hosts."""
        return play(
            playbook,
            self.database.inventory,
            "--vault-password-file",
            str(self.key),
            *arguments,
            environment=self.inventory,
            timeout=timeout,
        )

    @classmethod
    def make(cls, sandbox: Hosts, folder: Path, os: str = "debian13") -> Production:
        """Make both hosts and write their inventory; nothing is converged yet."""
        database = sandbox.up("prod1", os=os, group="database")
        peer = sandbox.up("peer", os=os, group="backup")
        inventory = folder / "prod"
        shutil.copytree(ROOT / "inventories/prod", inventory)
        variables = {
            "postgresql_listen_addresses": ["localhost", "{{ ansible_host }}"],
            "postgresql_allowed_networks": [f"{peer.address}/32", f"{database.address.rpartition('.')[0]}.1/32"],
            # A person of this machine who comes with a certificate, by a map, to the database template1 alone.
            "tls_clients": ["reporter"],
            "database_extensions": ["vector", "uuid-ossp", "pg_stat_statements", "pgaudit"],
            "postgresql_maps": [{"map": "reports", "system": "reporter", "role": "minion_readonly"}],
            "postgresql_extra_rules": [
                {
                    "users": ["minion_readonly"],
                    "databases": ["template1"],
                    "from": ["samenet"],
                    "method": "cert",
                    "map": "reports",
                }
            ],
        }
        (inventory / "group_vars/all/sandbox.yml").write_text(yaml.safe_dump(variables))
        key = folder / "vault-password"
        key.write_text(new_password())
        made = provision("secrets", "init", inventory, "--vault-password-file", key)
        assert made.returncode == 0, made.stderr
        return cls(database, peer, inventory, key)

    @property
    def authority(self) -> Path:
        """The folder of the environment's authority, with what clients are given."""
        return self.inventory / "tls"

    @property
    def secrets(self) -> dict[str, str]:
        """Every secret by a name that may be printed."""
        found = Vault(self.inventory, self.key.read_text()).read()
        credentials = found.pop("database_credentials")
        return {**found, **{f"password of {role}": each["password"] for role, each in credentials.items()}}

    @property
    def passwords(self) -> dict[str, str]:
        """The password of each login role that has one."""
        credentials = Vault(self.inventory, self.key.read_text()).read()["database_credentials"]
        return {role: each["password"] for role, each in credentials.items()}
