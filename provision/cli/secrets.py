"""`provision secrets`: make, judge and exchange the secrets of an inventory. On the controller."""

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
from provision.errors import ProvisionError, UsageError

LOOKS = ("--check", "--list-hosts", "--list-tags", "--list-tasks", "--syntax-check")
"""What makes ansible-playbook end well without a change to any host; it takes abbreviations too."""

inventory_argument = click.argument("inventory", type=click.Path(path_type=Path))
password_option = click.option(
    "--vault-password-file",
    "password_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=lambda: os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE"),
    help="File that holds the vault's password [ANSIBLE_VAULT_PASSWORD_FILE; else the keyring; else a prompt].",
)


@click.group("secrets")
def command() -> None:
    """Make, judge and exchange the secrets of an inventory, in a file that ansible-vault encrypts."""


def _only_looks(option: str) -> bool:
    name = option.partition("=")[0]
    return bool(re.match(r"-[vDbKkJ]*C", option)) or (len(name) > 3 and any(each.startswith(name) for each in LOOKS))


def _need_hosts(playbook: list[str]) -> None:
    # ansible-playbook ends well where it finds no host; of what the first play means, there must be one.
    listed = system.run(*playbook, "--list-hosts", check=False)
    found = re.search(r"hosts \((\d+)\)", listed.stdout)
    if listed.returncode or not found or found[1] == "0":
        raise UsageError(
            "no database host would get the new password",
            seen=listed.stderr.strip() or "no host of the group database",
            allowed="an inventory, and a --limit if any, that name at least one host of the group database",
            run=f"ansible-playbook {shlex.join(playbook[1:])} --list-hosts",
        )


def _stopped(number: int, frame: object) -> NoReturn:
    del frame
    raise SystemExit(128 + number)  # so that the vault is put back


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
    """Make every secret that is missing; what is there stays."""
    from provision.controller.vault import initialise

    made = initialise(_vault(inventory, password_file))
    click.echo("\n".join(f"made {name}" for name in made) or "no change")


@command.command()
@inventory_argument
@password_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(inventory: Path, password_file: Path | None, as_json: bool) -> None:
    """Judge the vault: encrypted, complete, long, not published, not repeated. Exit 3 when it is not fit for prod."""
    from provision.controller.vault import check as judge

    judge(_vault(inventory, password_file))
    click.echo(json.dumps({"findings": []}) if as_json else "fit for production")


@command.command()
@inventory_argument
@click.argument("role")
@password_option
@click.argument("playbook_options", nargs=-1, type=click.UNPROCESSED)
def rotate(inventory: Path, role: str, password_file: Path | None, playbook_options: tuple[str, ...]) -> None:
    """Exchange a login role's password: in the vault and, by site.yml --tags database,pgbouncer, on the hosts.

    Further options after -- go to ansible-playbook. When it fails the vault is as it was.
    """
    from provision.controller.vault import rotate as exchange

    looks = [option for option in playbook_options if _only_looks(option)]
    if looks:
        raise UsageError(
            "a run that changes no host would leave the vault with a password that no host has",
            seen=" ".join(looks),
            run=f"ansible-playbook site.yml -i {inventory} --tags database,pgbouncer --check, without rotate",
        )
    # Beside this very command: the environment need not be activated.
    program = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) or "ansible-playbook"
    words = [program, "site.yml", "-i", str(inventory), "--tags", "database,pgbouncer", *playbook_options]
    _need_hosts(words)
    vault = _vault(inventory, password_file)
    before = exchange(vault, role)
    words += ["--vault-password-file", str(password_file)] if password_file else ["--ask-vault-pass"]
    done = False
    signal.signal(signal.SIGTERM, _stopped)
    try:
        done = subprocess.run(words, check=False).returncode == 0  # noqa: S603 - the user's own command line
    finally:
        if not done:  # also when it could not be started, or was interrupted
            vault.write(before)
    if not done:
        raise ProvisionError(
            f"the password of {role} was not exchanged on every host, and the vault is as it was",
            where=str(inventory),
            run=f"ansible-playbook site.yml -i {inventory} --tags database,pgbouncer puts every host back to it",
        )
    click.echo(f"the password of {role} is a new one; the application reads it with: ansible-vault view {vault.path}")
