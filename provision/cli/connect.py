"""`provision connect`: print the connection parameters of a database for an application."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from provision import distributions, system
from provision.cli._echo import echo, restrict_output
from provision.cli._progress import working
from provision.errors import UsageError
from provision.plan import connect, load

if TYPE_CHECKING:
    from provision.plan.connect import Connection

PARTS = ("url", "direct-url", "conninfo", "env", "pgpass", "service", "ca", "password")
MODE = 0o600


@click.command("connect")
@click.option("--inventory", "-i", "inventories", multiple=True, help="Inventory of the host (repeatable).")
@click.option("--limit", default="", help="Host of the inventory [default: all].")
@click.option("--role", default="", help="Login role [default: the application's role, such as minion_app].")
@click.option("--dbname", default="", help="Database [default: the main database].")
@click.option("--host", default="", help="Host name for clients; the certificate must contain it.")
@click.option("--ca", default="", help="Path of the CA file on the application's machine [default: the controller's].")
@click.option("--password", "with_password", is_flag=True, help="Include the role's password from the vault.")
@click.option(
    "--vault-password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=lambda: os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE"),
    help="File with the vault's password [default: ANSIBLE_VAULT_PASSWORD_FILE].",
)
@click.option("--ask-vault-pass", is_flag=True, help="Prompt for the vault's password.")
@click.option("--os", "key", default=distributions.DEFAULT_KEY, show_default=True, help="Distribution of the host.")
@click.option("--show", type=click.Choice(PARTS), help="Print only this part, for scripts.")
@click.option("--write", type=click.Path(path_type=Path, file_okay=False),
              help="Write .env, pgpass, pg_service.conf and ca.crt to this directory (mode 0600).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(inventories: tuple[str, ...], show: str | None, write: Path | None, as_json: bool, **options: Any) -> None:
    """Print what an application needs to connect: URLs, .env file, password file, service file, CA.

    With --inventory on the controller, without it on a database host. The password is printed only with --password.
    """
    if write and options["ca"]:
        raise UsageError("--ca and --write exclude each other", allowed="--write, which copies the CA to ca.crt")
    if write:
        options["ca"] = str((write / connect.FILES["ca"]).absolute())
    if not inventories and options["limit"]:
        raise UsageError("--limit needs --inventory", run="provision connect --inventory inventories/prod --limit HOST")
    found = _planned(inventories, options) if inventories else [_here(options)]
    if (show or write) and len(found) > 1:
        raise UsageError(
            "several hosts match",
            seen=", ".join(each.name for each, _ in found),
            allowed="one host with --show and --write",
            run=f"add --limit {found[0][0].name}",
        )
    if options["with_password"] and not write:
        restrict_output()
    if write:
        _write(write, *found[0])
    elif show:
        echo(_part(show, found[0][0]).rstrip("\n"))
    elif as_json:
        echo(json.dumps([each.facts() for each, _ in found], indent=2))
    else:
        echo("\n\n".join(_text(each) for each, _ in found))
    if show or write:
        for note in found[0][0].notes:
            echo(f"note: {note}", err=True)


def _here(options: dict[str, Any]) -> tuple[Connection, Path]:
    """Return the connection of this host, and its CA file."""
    plan = load.load()
    if options["with_password"]:
        raise UsageError(
            "a database host has no passwords, only their verifiers",
            where=plan.name,
            allowed="--password on the controller, which has the vault",
            run=f"provision connect --inventory {(plan.inventory or ('INVENTORY',))[0]} --limit {plan.name} --password",
        )
    ca = options["ca"] or plan.tls.ca
    made = connect.connection(plan, options["role"], database=options["dbname"], ca=ca, host=options["host"])
    return made, Path(plan.tls.ca)


def _planned(inventories: tuple[str, ...], options: dict[str, Any]) -> list[tuple[Connection, Path]]:
    """Return the connections of an inventory's hosts, with the CA file on the controller."""
    from provision.controller import plans  # needs Ansible, which a host does not have

    asked = click.prompt("Vault password", hide_input=True, err=True) if options["ask_vault_pass"] else ""
    with working("reading the inventory"):
        outcomes = plans.plans(
            inventories,
            plans.Assumed(distributions.by_key(options["key"]), cpus=4, memory_mb=8192),
            limit=options["limit"],
            vault_password_file=str(options["vault_password_file"] or ""),
            vault_password=asked,
        )
    refused = [f"{name}: {problem}" for name, each in outcomes.items() for problem in each.problems]
    if refused:
        raise UsageError(
            "the inventory has problems",
            where=", ".join(inventories),
            seen="\n".join(refused),
            run=f"provision plan --inventory {inventories[0]}",
        )
    found = []
    for outcome in outcomes.values():
        plan = outcome.plan
        assert plan  # noqa: S101 - there were no problems
        role = options["role"] or plan.access.application
        source = Path(plan.tls.client_ca).absolute()
        secret = outcome.password(role) if options["with_password"] else ""
        made = connect.connection(
            plan, role, database=options["dbname"], ca=options["ca"] or str(source), host=options["host"],
            password=secret,
        )  # fmt: skip
        found.append((made, source))
    return found


def _part(show: str, found: Connection) -> str:
    parts = {
        "url": found.url(),
        "direct-url": found.url(found.port),
        "conninfo": found.conninfo(),
        "env": found.env() if show == "env" else "",
        "pgpass": found.pgpass(),
        "service": found.service(),
        "ca": found.ca,
        "password": found.password,
    }
    if show in ("pgpass", "password") and not found.password:
        raise UsageError(f"--show {show} needs the password", run="add --password")
    if show == "ca" and not found.ca:
        raise UsageError(f"{found.name} has no TLS, and so no CA", allowed="a profile with tls.enabled: true")
    return parts[show]


def _text(found: Connection) -> str:
    way = f"the pooler, port {found.pool_port}" if found.pool_port else f"a direct connection, port {found.port}"
    secret = "included below" if found.password else "add --password to include it"
    lines = [
        f"{found.name}: role {found.role}, database {found.database}, through {way}",
        "",
        f"application URL  {found.url()}",
        f"direct URL       {found.url(found.port)}  (migrations, dumps, LISTEN)",
        f"keyword string   {found.conninfo()}",
        f"CA file          {found.ca or 'none: no TLS'}",
        f"password         {secret}",
        "",
        ".env",
        _indented(found.env()),
    ]
    if found.pgpass():
        lines += ["", "~/.pgpass (mode 0600)", _indented(found.pgpass())]
    lines += ["", "~/.pg_service.conf (psql service=NAME)", _indented(found.service())]
    lines += ["", *(f"note: {note}" for note in found.notes)] if found.notes else []
    return "\n".join([*lines, "", "code for each driver: docs/connect-an-application.md"])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.rstrip("\n").split("\n"))


def _write(folder: Path, found: Connection, authority: Path) -> None:
    """Write the files of a client; the CA first, because the others name it."""
    contents: dict[str, str] = {}
    if found.ca:
        try:
            contents["ca"] = authority.read_text()
        except OSError as error:
            raise UsageError(
                "cannot read the CA",
                where=str(authority),
                seen=error.strerror or str(error),
                allowed="the file that the first run of site.yml creates",
                run="run site.yml, or give --ca FILE and --show env",
            ) from None
    contents |= {"env": found.env(), "service": found.service()}
    contents |= {"pgpass": found.pgpass()} if found.password else {}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in contents.items():
        system.write(folder / connect.FILES[name], content, mode=MODE)
        echo(str(folder / connect.FILES[name]))
