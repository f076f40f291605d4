"""Secrets of an inventory: generate, store in one vault file, check and rotate them. Controller only; does IO.

The file is inventories/<env>/group_vars/all/vault.yml, encrypted by ansible-vault's library. Only `rotate` replaces an
existing secret. Nothing here prints a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.parsing.vault import VaultLib, VaultSecret

from provision import system
from provision.errors import DriftError, UsageError
from provision.plan.secrets import new_password, new_salt

FILE = Path("group_vars/all/vault.yml")
HEADER = b"$ANSIBLE_VAULT"
LOGIN_ROLES = ("minion", "minion_app", "minion_readonly")
PASSPHRASES = ("backup_repository_passphrase", "tls_ca_passphrase")
KEYRING = "provision"
"""Keyring service of the vault password; the user name is the name of the inventory's folder."""


class Vault:
    """The vault of one inventory, and its password."""

    def __init__(self, inventory: Path, password: str) -> None:
        """Set the path; reads nothing yet. Raises UsageError if there is no inventory."""
        if not (inventory / "hosts.yml").is_file():
            raise UsageError(
                "no inventory", seen=str(inventory), allowed="a directory with hosts.yml, such as inventories/prod"
            )
        self.path = inventory / FILE
        self._library = VaultLib([("default", VaultSecret(password.encode()))])

    def read(self) -> dict[str, Any]:
        """Decrypt the file. Raises UsageError if it is missing, not encrypted or damaged, or the password is wrong."""
        command = f"provision secrets init {self.path.parents[2]}"
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            raise UsageError("no vault", where=str(self.path), run=command) from None
        if not raw.startswith(HEADER):
            raise UsageError(
                "the vault is not encrypted",
                where=str(self.path),
                allowed="a file encrypted by ansible-vault",
                run=f"ansible-vault encrypt {self.path}",
            )
        try:
            found = yaml.safe_load(self._library.decrypt(raw))
        except (AnsibleError, yaml.YAMLError):
            raise UsageError(
                "cannot decrypt the vault",
                where=str(self.path),
                seen="a wrong password or a damaged file",
                run=f"ansible-vault view {self.path}",
            ) from None
        return found if isinstance(found, dict) else {}

    def write(self, secrets: Mapping[str, Any]) -> None:
        """Replace the file atomically, readable only by its owner (mode 0600)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self._library.encrypt(yaml.safe_dump(dict(secrets), sort_keys=True).encode())
        system.write(self.path, text, mode=0o600)


def complete(secrets: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Add missing secrets; return all secrets and the names of the new ones. Pure except for randomness."""
    whole: dict[str, Any] = {**secrets}
    credentials = dict(whole.get("database_credentials") or {})
    made = []
    for role in LOGIN_ROLES:
        if not credentials.get(role):
            credentials[role] = {"password": new_password(), "salt": new_salt()}
            made.append(f"database_credentials.{role}")
    whole["database_credentials"] = credentials
    for name in PASSPHRASES:
        if not whole.get(name):
            whole[name] = new_password()
            made.append(name)
    return whole, made


def initialise(vault: Vault) -> list[str]:
    """Create the vault or its missing secrets; return the names of the new ones."""
    secrets, made = complete(vault.read() if vault.path.exists() else {})
    if made:
        vault.write(secrets)
    return made


def judge(secrets: Mapping[str, Any]) -> list[str]:
    """List missing, weak and repeated secrets by name. Pure."""
    from provision.plan.credentials import DEVELOPMENT_PASSWORD, MINIMUM_PASSWORD_LENGTH

    credentials = secrets.get("database_credentials") or {}
    values = {f"database_credentials.{role}": (credentials.get(role) or {}).get("password") for role in LOGIN_ROLES}
    values |= {f"database_credentials.{role}": each.get("password") for role, each in credentials.items()}
    values |= {name: secrets.get(name) for name in PASSPHRASES}
    found = []
    for name, value in values.items():
        if not value:
            found.append(f"{name} is missing")
        elif value == DEVELOPMENT_PASSWORD:
            found.append(f"{name} is the published development password")
        elif len(str(value)) < MINIMUM_PASSWORD_LENGTH:
            found.append(f"{name} has {len(str(value))} characters, the minimum is {MINIMUM_PASSWORD_LENGTH}")
        elif sum(other == value for other in values.values()) > 1:
            found.append(f"{name} is used twice")
    return found


def check(vault: Vault) -> None:
    """Raise DriftError with all problems of a vault."""
    found = judge(vault.read())
    if found:
        run = f"provision secrets init {vault.path.parents[2]} adds missing secrets; rotate replaces the others"
        raise DriftError(
            "the vault is not suitable for production", where=str(vault.path), seen="; ".join(found), run=run
        )


def rotate(vault: Vault, role: str) -> dict[str, Any]:
    """Store a new password and salt of a login role; return the previous secrets, for a rollback."""
    before = vault.read()
    credentials = before.get("database_credentials") or {}
    if role not in credentials:
        known = ", ".join(sorted(credentials))
        raise UsageError("no such login role in the vault", where=str(vault.path), seen=role, allowed=known)
    fresh = {**credentials, role: {"password": new_password(), "salt": new_salt()}}
    vault.write({**before, "database_credentials": fresh})
    return before


def plain_vaults(sources: list[str]) -> list[str]:
    """Return the unencrypted vault files of these inventories."""
    paths = [Path(source) / FILE for source in sources]
    return [str(path) for path in paths if path.is_file() and not path.read_bytes().startswith(HEADER)]
