"""The secrets of an inventory: made strong, kept in one vault file, judged, and exchanged. Controller only; does IO.

The file is inventories/<env>/group_vars/all/vault.yml, encrypted by ansible-vault's own library. A secret that is
there is never replaced but by `rotate`. Nothing here prints a secret.
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
"""Service name under which the vault's password is in the keyring; the user name is the inventory's folder name."""


class Vault:
    """One inventory's vault, with the password that opens it."""

    def __init__(self, inventory: Path, password: str) -> None:
        """Read nothing yet. Raises UsageError where there is no inventory."""
        if not (inventory / "hosts.yml").is_file():
            raise UsageError("no inventory", seen=str(inventory), allowed="a folder with hosts.yml: inventories/prod")
        self.path = inventory / FILE
        self._library = VaultLib([("default", VaultSecret(password.encode()))])

    def read(self) -> dict[str, Any]:
        """Open the file. Raises UsageError when it is missing, plain, damaged, or the password is not its own."""
        command = f"provision secrets init {self.path.parents[2]}"
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            raise UsageError("there is no vault", where=str(self.path), run=command) from None
        if not raw.startswith(HEADER):
            raise UsageError(
                "the vault is not encrypted",
                where=str(self.path),
                allowed="a file that ansible-vault made",
                run=f"ansible-vault encrypt {self.path}",
            )
        try:
            found = yaml.safe_load(self._library.decrypt(raw))
        except (AnsibleError, yaml.YAMLError):
            raise UsageError(
                "the vault cannot be opened",
                where=str(self.path),
                seen="the password is not its own, or the file is damaged",
                run=f"ansible-vault view {self.path}",
            ) from None
        return found if isinstance(found, dict) else {}

    def write(self, secrets: Mapping[str, Any]) -> None:
        """Replace the file atomically, mode 0600."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self._library.encrypt(yaml.safe_dump(dict(secrets), sort_keys=True).encode())
        system.write(self.path, text, mode=0o600)


def complete(secrets: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Add every secret that is missing; give the whole and the names of what was made. Pure but for randomness."""
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
    """Make the vault, or what is missing in it, and name what was made."""
    secrets, made = complete(vault.read() if vault.path.exists() else {})
    if made:
        vault.write(secrets)
    return made


def judge(secrets: Mapping[str, Any]) -> list[str]:
    """Name what is missing, weak or repeated, never a secret itself. Pure."""
    from provision.plan.validate import DEVELOPMENT_PASSWORD, MINIMUM_PASSWORD_LENGTH

    credentials = secrets.get("database_credentials") or {}
    values = {f"database_credentials.{role}": (credentials.get(role) or {}).get("password") for role in LOGIN_ROLES}
    values |= {f"database_credentials.{role}": each.get("password") for role, each in credentials.items()}
    values |= {name: secrets.get(name) for name in PASSPHRASES}
    found = []
    for name, value in values.items():
        if not value:
            found.append(f"{name} is missing")
        elif value == DEVELOPMENT_PASSWORD:
            found.append(f"{name} is the published one of development")
        elif len(str(value)) < MINIMUM_PASSWORD_LENGTH:
            found.append(f"{name} has {len(str(value))} characters, at least {MINIMUM_PASSWORD_LENGTH} are needed")
        elif sum(other == value for other in values.values()) > 1:
            found.append(f"{name} is used twice")
    return found


def check(vault: Vault) -> None:
    """Raise DriftError that names everything that is wrong with a vault."""
    found = judge(vault.read())
    if found:
        run = f"provision secrets init {vault.path.parents[2]} makes what is missing; rotate replaces the rest"
        raise DriftError("the vault is not fit for production", where=str(vault.path), seen="; ".join(found), run=run)


def rotate(vault: Vault, role: str) -> dict[str, Any]:
    """Put a new password and salt of a login role into the vault; give what was there, to go back to."""
    before = vault.read()
    credentials = before.get("database_credentials") or {}
    if role not in credentials:
        known = ", ".join(sorted(credentials))
        raise UsageError("no such login role in the vault", where=str(vault.path), seen=role, allowed=known)
    fresh = {**credentials, role: {"password": new_password(), "salt": new_salt()}}
    vault.write({**before, "database_credentials": fresh})
    return before


def plain_vaults(sources: list[str]) -> list[str]:
    """Name the vault files of these inventories that are not encrypted."""
    paths = [Path(source) / FILE for source in sources]
    return [str(path) for path in paths if path.is_file() and not path.read_bytes().startswith(HEADER)]
