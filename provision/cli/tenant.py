"""`provision tenant`: create, list, inspect, export, import and drop tenants. On the host, as root or postgres."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from provision import system
from provision.cli._echo import echo, restrict_output
from provision.cli._progress import working
from provision.errors import ConfirmationError, ProvisionError
from provision.host.backup import show as sizes
from provision.host.fleet import apply as fleet
from provision.host.fleet import code, nodes
from provision.host.fleet import move as moving
from provision.host.migrate.narrate import Narrator
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from provision.host.tenants import catalog, login, manage, statistics, transfer
from provision.plan import connect, load
from provision.plan.schema import Plan
from provision.quoting import visible

name_argument = click.argument("name")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("tenant")
def command() -> None:
    """Manage tenants: schemas of the main database with login roles of their own."""


def _plan() -> Plan:
    plan = load.load()
    system.become()
    return plan


@command.command()
@name_argument
@click.option("--connections", type=click.IntRange(1), help="Connection limit of NAME_app [default: the profile's].")
@click.option(
    "--new-passwords", is_flag=True, help="Replace the passwords of a tenant that the inventory does not declare."
)
@click.option("--adopt", is_flag=True, help="Give the objects of an existing schema NAME to the tenant.")
@click.option("--no-migrate", is_flag=True, help="Do not apply migrations.")
@json_option
def add(name: str, connections: int | None, new_passwords: bool, adopt: bool, no_migrate: bool, as_json: bool) -> None:
    """Create a tenant and migrate its schema, or repair one.

    Prints new passwords once; the server keeps only verifiers. A tenant of database_tenants gets its passwords from the
    vault and is created by site.yml.
    """
    restrict_output()  # before _plan, which becomes postgres
    plan = _plan()
    made = manage.add(plan, name, connections=connections or 0, new_passwords=new_passwords, adopt=adopt)
    failure: ProvisionError | None = None
    version, applied, distributed = "", 0, False
    if not no_migrate:
        try:
            version, applied = _migrate(plan, name)
            distributed = fleet.distribute_new(plan, name)
        except ProvisionError as error:  # after the passwords, which are printed only now
            failure = error
    changes = [*made.changes, *([f"{applied} migrations applied"] if applied else [])]
    changes += [f"schema {name}: distributed"] if distributed else []
    places = {role: connect.connection(plan, role, password=word, tenant=True) for role, word in made.passwords.items()}
    if as_json:
        values = {
            "tenant": name, "changes": changes, "version": version or None,
            "logins": [
                {"role": role, "password": each.password, "url": each.url(), "direct_url": each.url(each.port)}
                for role, each in places.items()
            ],
        }  # fmt: skip
        echo(json.dumps(values, indent=2))
    else:
        echo("\n".join(changes) or "no change")
        for role, each in places.items():
            echo(f"{role}: {each.url()}\n{' ' * len(role)}  {each.url(each.port)} (direct)")
    if failure:
        raise failure


def _migrate(plan: Plan, name: str) -> tuple[str, int]:
    with login.superuser(plan) as session, login.acting(plan, session, name) as acting:
        settings = Settings(
            acting.url, Path(plan.migrations.directory), lock_timeout_s=float(plan.migrations.lock_timeout_s)
        )
        report = Runner(settings, Narrator()).up()
    return str(report.after), len(report.done)


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the tenants with their version, size, rows, vectors and last use.

    Rows and vectors are the server's estimates. The last use is known from PostgreSQL 16 on.
    """
    plan = _plan()
    with login.superuser(plan) as session:
        found = statistics.read(session)
    if as_json:
        echo(json.dumps({"database": plan.access.database, "tenants": [each.values() for each in found]}, indent=2))
        return
    rows: list[tuple[str, ...]] = [("tenant", "version", "size", "rows", "vectors", "sessions", "last use", "state")]
    rows += [
        (
            each.name, each.version, sizes.size(each.size), str(each.rows), str(each.vectors), str(each.sessions),
            each.last_use or "unknown", each.state,
        )
        for each in found
    ]  # fmt: skip
    if any(each.group is not None for each in found):
        groups = ["-" if each.group is None else str(each.group) for each in found]
        rows = [(*row, group) for row, group in zip(rows, ["group", *groups], strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    echo("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))


@command.command()
@name_argument
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one tenant: its roles, version, size, newest activity and slowest statements."""
    plan = _plan()
    with login.superuser(plan) as session:
        catalog.find(session, name)
        (found,) = statistics.read(session, name)
        values: dict[str, Any] = {
            **found.values(),
            "database": plan.access.database,
            "declared": name in {each.name for each in plan.access.tenants},
            "roles": catalog.roles(lambda query, *given: session.execute(query.encode(), given).fetchall(), [name]),
            "newest_version": statistics.newest(plan),
            "last_activity": statistics.activity(plan, session, name),
            "slowest": statistics.slowest(session, name),
        }
    if as_json:
        echo(json.dumps(values, indent=2))
        return
    slow = values.pop("slowest")
    values["size"] = sizes.size(found.size)
    values["roles"] = ", ".join(values["roles"])
    echo("\n".join(f"{key.replace('_', ' ') + ':':<17}{'' if text is None else text}" for key, text in values.items()))
    for each in slow:
        echo(visible(f"{each['total_ms']:.0f} ms in {each['calls']:.0f} calls, {each['role']}: {each['text'][:100]}"))


@command.command()
@name_argument
@click.option("--to", "group", type=click.IntRange(1), required=True, help="Group of the fleet.")
@json_option
def move(name: str, group: int, as_json: bool) -> None:
    """Move a tenant to another group of the fleet while it is used; writes wait at the end."""
    plan = _plan()
    with nodes.coordinator(plan) as session, working(f"moving {name} to group {group}"):
        code.let_in(session)
        seconds = moving.move(session, name, group)
    values = {"tenant": name, "group": group, "changed": bool(seconds), "seconds": round(seconds, 1)}
    text = (
        f"tenant {name} moved to group {group} in {seconds:.1f} s" if seconds else f"tenant {name} is in group {group}"
    )
    echo(json.dumps(values, indent=2) if as_json else text)


@command.command()
@name_argument
@click.option("--yes-destroy", default="", metavar="NAME", help="Confirm the destruction of this tenant's data.")
@click.option("--without-export", is_flag=True, help="Do not export the data first.")
@json_option
def drop(name: str, yes_destroy: str, without_export: bool, as_json: bool) -> None:
    """Export a tenant, then drop its schema and roles; list the backups that still hold it."""
    plan = _plan()
    _confirm(plan, name, yes_destroy, "drop", ask=not as_json)
    with manage.changing(plan) as session, working("exporting") as narrate:
        sound = {each.name: each.sound for each in catalog.known(session)}.get(name)
        if sound is None:
            catalog.find(session, name)
        kept = None
        if sound and not without_export:
            kept = transfer.export(plan, session, name, transfer.place(plan, name))
        narrate("dropping")
        changes = manage.drop(plan, session, name)
    held = manage.still_held(plan, name)
    declared = name in {each.name for each in plan.access.tenants}
    if as_json:
        echo(json.dumps({"tenant": name, "changes": changes, "export": kept, "declared": declared, **held}, indent=2))
        return
    echo("\n".join(changes))
    echo(f"export: {kept['folder']}" if kept else "no export was made")
    for key in ("dumps", "sets"):
        echo(f"{key} that hold it: {', '.join(held[key]) or 'none'}")
    echo("\n".join(held["until"]))
    if declared:
        echo(f"remove {name} from database_tenants, or the next run of site.yml creates it again", err=True)


@command.command()
@name_argument
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), help="New folder [default: one in the directory of dumps]."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port of a copy that was restored beside the server [default: the server's].",
)
@json_option
def export(name: str, folder: Path | None, port: int | None, as_json: bool) -> None:
    """Write a tenant's schema and rows to a folder with checksums."""
    folder = folder.absolute() if folder else None
    plan = _plan()
    plan = replace(plan, server=replace(plan.server, port=port or plan.server.port))
    with login.superuser(plan) as session, working("exporting"):
        login.clean_up(session)
        done = transfer.export(plan, session, name, folder or transfer.place(plan, name))
    echo(json.dumps(done, indent=2) if as_json else _done(done, "exported to"))


@command.command("import")
@name_argument
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--replace", "replaces", is_flag=True, help="Export the present contents, then replace them.")
@click.option("--yes-destroy", default="", metavar="NAME", help="Confirm the destruction of this tenant's data.")
@json_option
def import_(name: str, folder: Path, replaces: bool, yes_destroy: str, as_json: bool) -> None:
    """Load an export into a tenant with an empty schema, and compare the numbers of rows.

    Create the tenant first: provision tenant add NAME --no-migrate. With --replace its roles and passwords are kept.
    """
    folder = folder.absolute()
    plan = _plan()
    if replaces:
        _confirm(plan, name, yes_destroy, "import", ask=not as_json)
    with manage.changing(plan) as session, working("checking the export") as narrate:
        kept = None
        if replaces:
            transfer.check(folder, name)
            narrate("exporting the present contents")
            kept = transfer.export(plan, session, name, transfer.place(plan, name))
            manage.empty(session, name)
        narrate("importing")
        done = {**transfer.load(plan, session, name, folder), "replaced": kept and kept["folder"]}
        fleet.distribute_new(plan, name)
    echo(json.dumps(done, indent=2) if as_json else _done(done, "imported from"))
    if kept and not as_json:
        echo(f"export of the replaced contents: {kept['folder']}")


def _confirm(plan: Plan, name: str, given: str, what: str, *, ask: bool) -> None:
    """Require the tenant's name, as an option or typed. Raises ConfirmationError."""
    try:
        manage.confirm(plan, name, given, what)
    except ConfirmationError as error:
        if given or not ask or not sys.stdin.isatty():
            raise
        echo(f"{error.what} ({error.where})", err=True)
        typed = click.prompt("Type the tenant's name to continue", default="", show_default=False, err=True)
        manage.confirm(plan, name, typed.strip(), what)


def _done(done: dict[str, Any], verb: str) -> str:
    rows = sum(done["rows"].values())
    return (
        f"tenant {done['tenant']} {verb} {done['folder']}: version {done['version']}, {rows} rows, {done['seconds']} s"
    )
