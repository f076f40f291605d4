"""Two production hosts that every test of the prod profile shares: a database, and its peer on the same network.

The peer is the host of the group `backup`, and the client that uses and attacks the database from outside. Whoever
breaks something on them mends it again; a test that cannot, makes hosts of its own in the fixture `project`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from provision.secrets import new_password, new_salt
from tests.sandboxes import Host, Hosts
from tests.system.playbooks import ROOT, Run, play


@dataclass(frozen=True)
class Production:
    """The hosts, and an inventory of their own beside the one that the sandbox generates."""

    database: Host
    peer: Host
    inventory: Path

    def play(self, *arguments: str, playbook: str = "site.yml", timeout: int = 900) -> Run:
        """Run a playbook against both hosts."""
        return play(playbook, self.database.inventory, *arguments, environment=self.inventory, timeout=timeout)

    @classmethod
    def make(cls, sandbox: Hosts, folder: Path) -> Production:
        """Make both hosts and write their inventory; nothing is converged yet."""
        database = sandbox.up("prod1", os="debian13", group="database")
        peer = sandbox.up("peer", os="debian13", group="backup")
        inventory = folder / "prod"
        shutil.copytree(ROOT / "inventories/prod", inventory)
        variables = {
            "postgresql_listen_addresses": ["localhost", database.address],
            "postgresql_allowed_networks": [f"{peer.address}/32", f"{database.address.rpartition('.')[0]}.1/32"],
        }
        (inventory / "group_vars/all/sandbox.yml").write_text(yaml.safe_dump(variables))
        names = ("minion", "minion_app", "minion_readonly")
        credentials = {name: {"password": new_password(), "salt": new_salt()} for name in names}
        vault = inventory / "group_vars/all/vault.yml"
        secrets = {"database_credentials": credentials, "backup_repository_passphrase": new_password()}
        vault.write_text(yaml.safe_dump(secrets))
        vault.chmod(0o600)
        return cls(database, peer, inventory)
