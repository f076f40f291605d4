"""`provision secrets`: generate, check and rotate the secrets of an inventory. Controller only."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click

from provision import system
from provision.cli._echo import echo
from provision.cli._process import stoppable
from provision.cli._progress import working
from provision.errors import ProvisionError, UsageError

READ_ONLY = ("--check", "--list-hosts", "--list-tags", "--list-tasks", "--syntax-check")
"""Options of ansible-playbook that change no host; it also accepts abbreviations."""
PARTIAL = ("--skip-tags", "--start-at-task", "--step", "--tags")
"""Options that leave out tasks: the run could succeed without setting the password."""

inventory_argument = click.argument("inventory", type=click.Path(path_type=Path))
password_option = click.option(
    "--vault-password-file",
    "password_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=lambda: os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE"),
    help="File with the vault password [default: ANSIBLE_VAULT_PASSWORD_FILE, keyring, or prompt].",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("secrets")
def command() -> None:
    """Manage the secrets of an inventory, encrypted by ansible-vault."""


def _is_refused(option: str) -> bool:
    name = option.partition("=")[0]
    return bool(re.match(r"-[vDbKkJ]*[Ct]", option)) or (
        len(name) > 3 and any(each.startswith(name) for each in (*READ_ONLY, *PARTIAL))
    )


def _unlimited(options: tuple[str, ...]) -> list[str]:
    """Return the options without --limit and its value, in each spelling that ansible-playbook accepts."""
    kept, skip = [], False
    for option in options:
        limits = option.startswith(("--lim", "-l"))
        if not (skip or limits):
            kept.append(option)
        skip = not skip and (option == "-l" or (option.startswith("--lim") and "=" not in option))
    return kept


def _hosts(playbook: list[str]) -> set[str]:
    """Return the hosts in the play of database and dcs. Raises UsageError if there is none: the run would exit 0."""
    listed = system.run(*playbook, "--list-hosts", check=False)
    found = re.search(r"pattern: \['[^'\n]*database[^'\n]*'\]\s+hosts \(\d+\):\n((?: +\S+\n?)+)", listed.stdout)
    if listed.returncode or not found:
        raise UsageError(
            "no database host matches",
            seen=listed.stderr.strip() or "no host in group database",
            allowed="an inventory and --limit with at least one host in group database",
            run=f"ansible-playbook {shlex.join(playbook[1:])} --list-hosts",
        )
    return set(found[1].split())


def _vault(inventory: Path, password_file: Path | None, *, new: bool = False):  # type: ignore[no-untyped-def]
    """Return the vault; the prompt for a `new` password asks twice."""
    from provision.controller.vault import KEYRING, Vault

    if password_file:
        return Vault(inventory, password_file.read_text().strip())
    import keyring
    from keyring.errors import KeyringError

    try:
        password = keyring.get_password(KEYRING, inventory.name)
    except KeyringError:
        password = None
    return Vault(
        inventory, password or click.prompt("Vault password", hide_input=True, err=True, confirmation_prompt=new)
    )


@command.command()
@inventory_argument
@password_option
@json_option
def init(inventory: Path, password_file: Path | None, as_json: bool) -> None:
    """Generate missing secrets; keep existing ones."""
    from provision.controller.vault import FILE, initialise

    made = initialise(_vault(inventory, password_file, new=not (inventory / FILE).exists()))
    if as_json:
        echo(json.dumps({"changed": bool(made), "created": made}))
        return
    echo("\n".join(f"created {name}" for name in made) or "no change")


@command.command()
@inventory_argument
@password_option
@json_option
def check(inventory: Path, password_file: Path | None, as_json: bool) -> None:
    """Check that the vault is encrypted and complete, without weak or repeated secrets; exit 3 if not."""
    from provision.controller.vault import check as check_vault

    check_vault(_vault(inventory, password_file))
    echo(json.dumps({"findings": []}) if as_json else "suitable for production")


@command.command()
@inventory_argument
@click.argument("role")
@password_option
@click.option("--undo", is_flag=True, help="Restore the previous password of an unfinished rotation.")
@click.argument("playbook_options", nargs=-1, type=click.UNPROCESSED)
def rotate(
    inventory: Path, role: str, password_file: Path | None, undo: bool, playbook_options: tuple[str, ...]
) -> None:
    """Replace the password of ROLE in the vault and on the hosts.

    ROLE is a login role or its second login (ROLE_2), which is created. The vault keeps the previous password until
    every host has accepted the new one; the command also finishes a rotation that was interrupted. Options after -- go
    to ansible-playbook.
    """
    from provision.controller.vault import held, settle
    from provision.controller.vault import rotate as replace

    refused = [option for option in playbook_options if _is_refused(option) or "database_credentials" in option]
    if refused:
        raise UsageError(
            "rotate needs a run that sets the password on the hosts: otherwise only the vault would change",
            seen=" ".join(refused),
            run=f"ansible-playbook site.yml -i {inventory} --tags database,pgbouncer --check, without rotate",
        )
    # From the same virtual environment, which need not be activated.
    program = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) or "ansible-playbook"
    words = [program, "site.yml", "-i", str(inventory), "--tags", "database,pgbouncer"]
    with working("reading the inventory"):
        some, every = _hosts([*words, *playbook_options]), _hosts([*words, *_unlimited(playbook_options)])
    vault = _vault(inventory, password_file)
    again = f"provision secrets rotate {inventory} {role}"
    with stoppable(), held(vault):
        if not replace(vault, role, undo=undo):
            echo(f"continuing the unfinished rotation of {role}", err=True)
        words += [*playbook_options]
        words += ["--vault-password-file", str(password_file)] if password_file else ["--ask-vault-pass"]
        if subprocess.run(words, check=False).returncode:  # noqa: S603 - the user's own command line
            raise ProvisionError(
                f"the password of {role} was not replaced on every host; the vault keeps it and the previous one",
                where=str(inventory),
                run=f"{again} continues; {again} --undo restores the previous password",
            )
        if every - some:
            echo(
                f"the vault also keeps the previous password of {role}, for {', '.join(sorted(every - some))}; "
                f"{again} without --limit finishes"
            )
            return
        settle(vault, role)
    echo(f"new password for {role}; show it with: ansible-vault view {vault.path}")
