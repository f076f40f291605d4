"""`provision secrets`: generate, check and rotate the secrets of an inventory. Controller only."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import click

from provision import system
from provision.cli._echo import echo
from provision.errors import ProvisionError, UsageError

READ_ONLY = ("--check", "--list-hosts", "--list-tags", "--list-tasks", "--syntax-check")
"""Options of ansible-playbook that change no host; it also accepts abbreviations."""

inventory_argument = click.argument("inventory", type=click.Path(path_type=Path))
password_option = click.option(
    "--vault-password-file",
    "password_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=lambda: os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE"),
    help="File with the vault password [default: ANSIBLE_VAULT_PASSWORD_FILE, keyring, or prompt].",
)


@click.group("secrets")
def command() -> None:
    """Manage the secrets of an inventory, encrypted by ansible-vault."""


def _is_read_only(option: str) -> bool:
    name = option.partition("=")[0]
    return bool(re.match(r"-[vDbKkJ]*C", option)) or (
        len(name) > 3 and any(each.startswith(name) for each in READ_ONLY)
    )


def _need_hosts(playbook: list[str]) -> None:
    # ansible-playbook exits 0 if no host matches, so require one in the play of group database.
    listed = system.run(*playbook, "--list-hosts", check=False)
    found = re.search(r"pattern: \['database'\]\s+hosts \((\d+)\)", listed.stdout)
    if listed.returncode or not found or found[1] == "0":
        raise UsageError(
            "no database host matches",
            seen=listed.stderr.strip() or "no host in group database",
            allowed="an inventory and --limit with at least one host in group database",
            run=f"ansible-playbook {shlex.join(playbook[1:])} --list-hosts",
        )


def _stopped(number: int, frame: object) -> NoReturn:
    del frame
    raise SystemExit(128 + number)  # so that the vault is restored


def _vault(inventory: Path, password_file: Path | None):  # type: ignore[no-untyped-def]
    from provision.controller.vault import KEYRING, Vault

    if password_file:
        return Vault(inventory, password_file.read_text().strip())
    import keyring
    from keyring.errors import KeyringError

    try:
        password = keyring.get_password(KEYRING, inventory.name)
    except KeyringError:
        password = None
    return Vault(inventory, password or click.prompt("Vault password", hide_input=True, err=True))


@command.command()
@inventory_argument
@password_option
def init(inventory: Path, password_file: Path | None) -> None:
    """Generate missing secrets; keep existing ones."""
    from provision.controller.vault import initialise

    made = initialise(_vault(inventory, password_file))
    echo("\n".join(f"created {name}" for name in made) or "no change")


@command.command()
@inventory_argument
@password_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(inventory: Path, password_file: Path | None, as_json: bool) -> None:
    """Check that the vault is encrypted and complete, without weak or repeated secrets; exit 3 if not."""
    from provision.controller.vault import check as check_vault

    check_vault(_vault(inventory, password_file))
    echo(json.dumps({"findings": []}) if as_json else "suitable for production")


@command.command()
@inventory_argument
@click.argument("role")
@password_option
@click.argument("playbook_options", nargs=-1, type=click.UNPROCESSED)
def rotate(inventory: Path, role: str, password_file: Path | None, playbook_options: tuple[str, ...]) -> None:
    """Replace the password of ROLE in the vault and on the hosts.

    Options after -- go to ansible-playbook. If it fails, the vault keeps the old password.
    """
    from provision.controller.vault import rotate as replace

    read_only = [option for option in playbook_options if _is_read_only(option)]
    if read_only:
        raise UsageError(
            "rotate needs a run that changes hosts: otherwise only the vault would change",
            seen=" ".join(read_only),
            run=f"ansible-playbook site.yml -i {inventory} --tags database,pgbouncer --check, without rotate",
        )
    # From the same virtual environment, which need not be activated.
    program = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) or "ansible-playbook"
    words = [program, "site.yml", "-i", str(inventory), "--tags", "database,pgbouncer", *playbook_options]
    _need_hosts(words)
    vault = _vault(inventory, password_file)
    before = replace(vault, role)
    words += ["--vault-password-file", str(password_file)] if password_file else ["--ask-vault-pass"]
    done = False
    signal.signal(signal.SIGTERM, _stopped)
    try:
        done = subprocess.run(words, check=False).returncode == 0  # noqa: S603 - the user's own command line
    finally:
        if not done:  # also if it could not start or was interrupted
            vault.write(before)
    if not done:
        raise ProvisionError(
            f"the password of {role} was not replaced on every host; the vault keeps the old one",
            where=str(inventory),
            run=f"ansible-playbook site.yml -i {inventory} --tags database,pgbouncer restores it on every host",
        )
    echo(f"new password for {role}; show it with: ansible-vault view {vault.path}")
