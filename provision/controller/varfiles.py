"""The variable files of an inventory, as Ansible finds them, and the secrets in them. Does IO.

A file encrypted as a whole begins with ansible-vault's header. An inline `!vault` value is an EncryptedString. A value
with a template refers to another variable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import EncryptedString, VaultHelper

FILE = Path("group_vars/all/vault.yml")
HEADER = b"$ANSIBLE_VAULT"
NAMES = ("database_credentials", "backup_repository_passphrase", "tls_ca_passphrase", "cluster_passphrase", "backup_s3",
         "backup_second_s3")  # fmt: skip
"""Variables that hold secrets."""
PUBLIC = ("salt", "bucket", "endpoint", "region", "key", "port", "ca_file", "uri_style", "path",
          "retention_full", "retention_diff")  # fmt: skip
"""Keys inside them that are not secret."""


def read_by_ansible(inventory: Path, loader: DataLoader) -> list[Path]:
    """Return the files of group_vars and host_vars in Ansible's order: all, other groups, hosts."""
    found: list[Path] = []
    for kind in ("group_vars", "host_vars"):
        names = {path.name.removesuffix(path.suffix) for path in (inventory / kind).glob("*")}
        for name in sorted(names, key=lambda each: (each != "all", each)):
            found += [Path(each) for each in loader.find_vars_files(str(inventory / kind), name, allow_dir=True)]
    return list(dict.fromkeys(path for path in found if path.is_file()))


def ignored(inventory: Path) -> list[Path]:
    """Return encrypted files below group_vars and host_vars that Ansible does not read, as below vault.d."""
    read = set(read_by_ansible(inventory, DataLoader()))
    every = [path for kind in ("group_vars", "host_vars") for path in sorted((inventory / kind).rglob("*"))]
    return [path for path in every if path.is_file() and path not in read and _head(path) == HEADER]


def in_clear(source: Path) -> Iterator[Path]:
    """Yield the files of an inventory (its directory, or its file of hosts) with a secret in clear text."""
    folder = source if source.is_dir() else source.parent
    loader = DataLoader()
    for path in [*read_by_ansible(folder, loader), *folder.glob("hosts*")] if source.exists() else []:
        if _head(path) == HEADER or not path.is_file():
            continue
        try:
            values = loader.load_from_file(str(path), cache="none", trusted_as_template=True)
        except AnsibleError:
            continue  # Ansible refuses it
        if _clear(values):
            yield path


def credentials(sources: Sequence[str]) -> Iterator[Path]:
    """Yield files other than the vault that set database_credentials; without a vault, encrypted files too."""
    loader = DataLoader()
    for folder in (path if path.is_dir() else path.parent for path in map(Path, sources) if path.exists()):
        for path in read_by_ansible(folder, loader):
            if path == folder / FILE:
                continue
            if _head(path) == HEADER:
                if not (folder / FILE).is_file():
                    yield path
                continue
            with suppress(AnsibleError):  # Ansible refuses it
                values = loader.load_from_file(str(path), cache="none", trusted_as_template=True)
                if isinstance(values, Mapping) and NAMES[0] in values:
                    yield path


def edit(path: Path) -> str:
    """Return how to change a file with secrets: `ansible-vault edit` opens only files encrypted as a whole."""
    if _head(path) == HEADER:
        return f"ansible-vault edit {path}"
    return f"edit {path}; make inline values with ansible-vault encrypt_string --prompt --name NAME"


def vault_problem(said: str) -> str:
    """Return the cause that an error of Ansible has, "" where it is not about the vault's password. Pure."""
    if "Attempting to decrypt but no vault secrets" in said:
        return "the vault is encrypted, and no vault password was given"
    return "a wrong vault password, or a changed file" if "Decryption failed" in said else ""


def opened(value: Any, decrypt: Callable[[str], bytes]) -> Any:
    """Return a value with its inline values decrypted. Raises AnsibleError if decryption fails."""
    if isinstance(value, EncryptedString):
        return decrypt(str(VaultHelper.get_ciphertext(value, with_tags=False))).decode()
    if isinstance(value, Mapping):
        return {key: opened(each, decrypt) for key, each in value.items()}
    return [opened(each, decrypt) for each in value] if isinstance(value, list) else value


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(len(HEADER))


def _clear(values: Any) -> bool:
    """Whether a secret variable, at any depth, has a value in clear text."""
    if not isinstance(values, Mapping):
        return False
    return any(_secret(each) if key in NAMES else _clear(each) for key, each in values.items())


def _secret(value: Any) -> bool:
    if isinstance(value, EncryptedString) or value is None:
        return False
    if isinstance(value, Mapping):
        return any(_secret(each) for key, each in value.items() if key not in PUBLIC)
    text = str(value)
    return bool(text) and "{{" not in text
