"""Secrets of an inventory: generate, store in one vault file, check and rotate them. Controller only; does IO.

New secrets go to inventories/<env>/group_vars/all/vault.yml, encrypted as a whole. Secrets in other files of group_vars
and host_vars, and inline `!vault` values, are read as Ansible reads them and never changed here: `init` and `rotate`
name the file. Only `rotate` replaces an existing secret. Nothing here prints a secret.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import (
    AnsibleVaultError,
    AnsibleVaultFormatError,
    VaultLib,
    VaultSecret,
    parse_vaulttext_envelope,
)
from ansible.template import Templar

from provision import system
from provision.controller import varfiles
from provision.errors import DriftError, UsageError
from provision.plan import names, tenants, variables
from provision.plan.credentials import PAIR, PREVIOUS
from provision.plan.secrets import new_password, new_salt

FILE = varfiles.FILE
OWNER = "minion"
"""Default of database_owner."""
LOGIN_ROLES = names.with_passwords(OWNER)
PASSWORD_KINDS = ("owner", "write", "read")
"""Kinds of database_extra_roles that log in with a password; the others log in over the socket."""
PASSPHRASES = ("backup_repository_passphrase", "tls_ca_passphrase", "cluster_passphrase")
OPTIONAL = ("cluster_passphrase",)
"""Those that only some topologies need: `init` makes them, `check` does not miss them."""
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
        self.inventory, self.path = inventory, inventory / FILE
        secrets = [("default", VaultSecret(password.encode()))]
        self._library, self._loader, self._label = VaultLib(secrets), DataLoader(), None
        self._loader.set_vault_secrets(secrets)

    def read(self) -> dict[str, Any]:
        """Return the values of the vault file. Raises UsageError if it cannot be read or decrypted."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            raise UsageError("no vault", where=str(self.path), **self._advice()) from None
        if raw.startswith(varfiles.HEADER):
            with suppress(AnsibleError):  # reported by _load
                self._label = parse_vaulttext_envelope(raw)[3]
        return self._load(self.path)

    def everything(self) -> dict[str, Any]:
        """Return the evaluated secrets of all files. Raises UsageError.

        Host variables win over those of groups, and groups over `all`, as in Ansible.
        """
        if not self.path.is_file() and not self.others():
            raise UsageError("no vault", where=str(self.path), **self._advice())
        return self._evaluated(varfiles.NAMES)

    def roles(self) -> tuple[str, ...]:
        """Return the login roles of this inventory that need a password: ours, then those of database_extra_roles
        and of database_tenants.

        Raises UsageError.
        """
        found = self._evaluated(("database_owner", "database_extra_roles", "database_tenants"))
        extra = [each for each in found.get("database_extra_roles") or () if isinstance(each, Mapping)]
        own = names.with_passwords(str(found.get("database_owner") or OWNER))
        needed = [
            str(each.get("name"))
            for each in extra
            if each.get("kind") in PASSWORD_KINDS and each.get("state", "present") == "present"
        ]
        named = [str(each.get("name")) for each in found.get("database_tenants") or () if isinstance(each, Mapping)]
        of_tenants = [role for name in named for role in tenants.role_names(name)]
        return tuple(dict.fromkeys([*own, *needed, *of_tenants]))

    def _evaluated(self, wanted: Sequence[str]) -> dict[str, Any]:
        """Return the evaluated variables of these names from all files."""
        whole: dict[str, Any] = {}
        for path in varfiles.read_by_ansible(self.inventory, self._loader):
            whole |= self._load(path)
        engine = Templar(loader=self._loader, variables=whole)
        found = {}
        for name in wanted:
            if name in whole:
                try:
                    found[name] = variables.plain(engine.template(whole[name]))
                except AnsibleError as error:
                    seen = str(error).splitlines()[0]
                    raise UsageError(f"{name} cannot be evaluated", where=str(self.inventory), seen=seen) from None
        return found

    def others(self) -> dict[str, list[str]]:
        """Return the secrets in files other than the vault: file to names."""
        found = {}
        for path in varfiles.read_by_ansible(self.inventory, self._loader):
            if path != self.path:
                names = [name for name in varfiles.NAMES if name in self._load(path)]
                found.update({str(path): names} if names else {})
        return found

    def write(self, secrets: Mapping[str, Any]) -> None:
        """Replace the file atomically, readable only by its owner (mode 0600). Raises UsageError for inline values."""
        if self.path.is_file() and not self.path.read_bytes().startswith(varfiles.HEADER):
            raise UsageError(
                "the vault is not encrypted as a whole; rewriting it would lose comments and inline values",
                where=str(self.path),
                allowed="a file encrypted by ansible-vault, or an edit by hand",
                run=f"ansible-vault encrypt {self.path}, or ansible-vault encrypt_string for each value",
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(variables.plain(secrets), sort_keys=True).encode()
        system.write(self.path, self._library.encrypt(text, vault_id=self._label), mode=0o600)

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            found = self._loader.load_from_file(str(path), cache="none", trusted_as_template=True)
            found = varfiles.opened(found or {}, self._library.decrypt)
        except AnsibleVaultFormatError as error:
            raise self._unreadable(path, f"damaged: {error}") from None
        except AnsibleVaultError:
            raise self._unreadable(path, "a wrong vault password, or a changed file") from None
        except AnsibleError as error:
            raise self._unreadable(path, str(error).splitlines()[0]) from None
        return found if isinstance(found, dict) else {}

    def _unreadable(self, path: Path, seen: str) -> UsageError:
        return UsageError(
            "cannot decrypt the vault" if path == self.path else "cannot read a file of the inventory",
            where=str(path),
            seen=seen,
            run=f"ansible-vault view {path}"
            if path.read_bytes().startswith(varfiles.HEADER)
            else f"provision secrets check {self.inventory} --vault-password-file FILE, with the right password; "
            f"or {varfiles.edit(path)}",
        )

    def _advice(self) -> dict[str, str]:
        """Propose `init`, unless another file has secrets: a second set would override them."""
        others = self.others()
        if not others:
            return {"run": f"provision secrets init {self.inventory}"}
        return {"seen": f"secrets in {', '.join(others)}", "run": f"provision secrets check {self.inventory}"}


def complete(secrets: Mapping[str, Any], roles: Sequence[str] = LOGIN_ROLES) -> tuple[dict[str, Any], list[str]]:
    """Add missing secrets; return all secrets and the names of the new ones. Pure except for randomness."""
    whole: dict[str, Any] = {**secrets}
    credentials = dict(whole.get("database_credentials") or {})
    made = []
    for role in roles:
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
    """Create the vault or its missing secrets; return the names of the new ones.

    Holds the inventory: a vault that was read before a rotation and written after it would lose the new password.
    Raises UsageError during a rotation or another `init`, and if a missing secret belongs to a variable that another
    file sets: the vault would override it.
    """
    with held(vault):
        return _initialise(vault)


def _initialise(vault: Vault) -> list[str]:
    own = vault.read() if vault.path.exists() else {}
    others = vault.others()
    elsewhere = {name: path for path, names in others.items() for name in names}
    roles = vault.roles()
    _, missing = complete(vault.everything() if own or others else {}, roles)
    for name in missing:
        variable = name.partition(".")[0]
        if variable in elsewhere:
            raise UsageError(
                f"{name} is missing, and {variable} is set in another file",
                where=elsewhere[variable],
                allowed="all secrets of a variable in one file",
                run=f"{varfiles.edit(Path(elsewhere[variable]))}; generate a password with openssl rand -base64 24",
            )
    if not missing:
        return []
    secrets, _ = complete(own, roles)
    made = {name.partition(".")[0] for name in missing}
    vault.write({name: value for name, value in secrets.items() if name in own or name in made})
    return missing


def judge(secrets: Mapping[str, Any], roles: Sequence[str] = LOGIN_ROLES) -> list[str]:
    """List missing, weak and repeated secrets by name. Pure."""
    from provision.plan.credentials import DEVELOPMENT_PASSWORD, MINIMUM_PASSWORD_LENGTH

    credentials = secrets.get("database_credentials") or {}
    values = {f"database_credentials.{role}": (credentials.get(role) or {}).get("password") for role in roles}
    values |= {f"database_credentials.{role}": each.get("password") for role, each in credentials.items()}
    values |= {name: secrets.get(name) for name in PASSPHRASES}
    found = [f"the rotation of {role} is unfinished" for role, each in credentials.items() if each.get(PREVIOUS)]
    for name, value in values.items():
        if not value:
            found += [] if name in OPTIONAL else [f"{name} is missing"]
        elif value == DEVELOPMENT_PASSWORD:
            found.append(f"{name} is the published development password")
        elif len(str(value)) < MINIMUM_PASSWORD_LENGTH:
            found.append(f"{name} has {len(str(value))} characters, the minimum is {MINIMUM_PASSWORD_LENGTH}")
        elif sum(other == value for other in values.values()) > 1:
            found.append(f"{name} is used twice")
    return found


def check(vault: Vault) -> None:
    """Raise DriftError with all problems of the secrets in all files."""
    found = judge(vault.everything(), vault.roles())
    found += [f"{path} has secrets in clear text" for path in plain_vaults([str(vault.inventory)])]
    found += [f"{path} is ignored by Ansible" for path in varfiles.ignored(vault.inventory)]
    if found:
        others = ", ".join(vault.others())
        raise DriftError(
            "the vault is not suitable for production",
            where=", ".join(filter(None, (str(vault.path) if vault.path.is_file() else "", others))),
            seen="; ".join(found),
            run="; ".join(varfiles.edit(Path(path)) for path in vault.others())
            if others
            else f"provision secrets init {vault.inventory} adds missing secrets; rotate replaces the others",
        )


def rotate(vault: Vault, role: str, *, undo: bool = False) -> bool:
    """Store a new password and salt of a login role beside the previous ones; False if that is done already.

    The previous pair stays under the key `previous` until `settle`: a server has accepted one of the two, whenever the
    run ends. A rotation without `settle` is continued with its own password, and with `undo` the two pairs change
    places, so that the next run restores the previous one. The second login of a known role, and a role of
    database_extra_roles, are created. Raises UsageError.
    """
    _refuse_elsewhere(vault)
    whole = vault.read()
    credentials = dict(whole.get("database_credentials") or {})
    held = credentials.get(role)
    first = names.first_login(role)
    roles = vault.roles()
    if held is None and role not in roles and (first is None or first not in credentials):
        known = ", ".join(sorted({*credentials, *roles}))
        allowed = f"{known}, or the second login of one of them ({names.second_login('ROLE')})"
        raise UsageError("no such login role in the vault", where=str(vault.path), seen=role, allowed=allowed)
    held = held or {}
    pending = held.get(PREVIOUS)
    if undo and not pending:
        raise UsageError(
            "no unfinished rotation", where=str(vault.path), seen=role, allowed="a role with two passwords"
        )
    if pending and not undo:
        return False
    old = {key: held[key] for key in PAIR if key in held}
    fresh = dict(pending) if pending else {"password": new_password(), "salt": new_salt()}
    credentials[role] = {**fresh, PREVIOUS: old} if old else fresh
    vault.write({**whole, "database_credentials": credentials})
    return True


def settle(vault: Vault, role: str) -> None:
    """Forget the previous password of a role, once every host has been seen to accept the new one."""
    whole = vault.read()
    credentials = dict(whole["database_credentials"])
    credentials[role] = {key: value for key, value in credentials[role].items() if key != PREVIOUS}
    vault.write({**whole, "database_credentials": credentials})


@contextmanager
def held(vault: Vault) -> Iterator[None]:
    """Hold the inventory while its vault is changed; a killed process releases it. Raises UsageError if it is held."""
    handle = os.open(vault.inventory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            "another command is changing the vault",
            where=str(vault.inventory),
            allowed="one `provision secrets init` or `rotate` at a time",
            run="wait for it to end, then run the command again",
        ) from None
    else:
        yield
    finally:
        os.close(handle)


def _refuse_elsewhere(vault: Vault) -> None:
    elsewhere = [path for path, found in vault.others().items() if "database_credentials" in found]
    if elsewhere:
        raise UsageError(
            "the password is not in the vault but in another file", where=elsewhere[0],
            allowed=f"database_credentials in {vault.path}",
            run=f"{varfiles.edit(Path(elsewhere[0]))}; then ansible-playbook site.yml -i {vault.inventory} "
            "--tags database,pgbouncer",
        )  # fmt: skip


def plain_vaults(sources: list[str]) -> list[str]:
    """Return the files of these inventories that hold secrets in clear text."""
    return [str(path) for source in sources for path in varfiles.in_clear(Path(source))]
