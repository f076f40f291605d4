"""`provision backup`: take, prove and watch backups, on the database host as root or postgres."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from provision.host.backup import drill as drills
from provision.host.backup import dump, key, plan, show, status, take, tool
from provision.plan import load

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("backup")
@click.pass_context
def command(context: click.Context) -> None:
    """Take, prove and watch backups."""
    if context.invoked_subcommand != "key":  # makes a folder as root before it becomes postgres
        tool.be_postgres()


@command.command("take")
@click.option("--type", "kind", type=click.Choice([*take.KINDS, "logical"]), default="full", show_default=True)
@as_json
def take_command(kind: str, as_json: bool) -> None:
    """Take a backup now."""
    wanted = plan.read()
    result = dump.take(wanted) if kind == "logical" else take.physical(wanted, kind)
    _print(result, as_json, show.taken)


@command.command("prepare")
@click.option("--take-over", default="", help="Continue this stanza, although it holds backups of another cluster.")
@as_json
def prepare_command(take_over: str, as_json: bool) -> None:
    """Make the stanza ready and see WAL arrive; the first backup is started where there is none."""
    _print(take.prepare(plan.read(), take_over), as_json, show.prepared)


@command.command("status")
@click.option("--record", is_flag=True, help="Keep what was seen in /var/lib/provision/backup.json.")
@as_json
def status_command(record: bool, as_json: bool) -> None:
    """Show sets, ages, WAL and the last drill; exit 3 when a limit is passed."""
    seen = status.look(plan.read())
    if record:
        status.keep(seen)
    _print(seen, as_json, show.status)
    status.alarm(seen)


@command.command("verify")
@as_json
def verify_command(as_json: bool) -> None:
    """Read every file of the repository and of the dumps and compare it with its checksum."""
    seen = status.verify(plan.read())
    _print(seen, as_json, show.verified)
    status.alarm(seen)


@command.command("drill")
@click.option("--set", "label", default="", help="Set to restore [default: the newest that has figures].")
@as_json
def drill_command(label: str, as_json: bool) -> None:
    """Restore the newest backup into a scratch cluster, compare it, and remove it again."""
    _print(drills.run(plan.read(), label, narrate=lambda text: click.echo(text, err=True)), as_json, show.drilled)


@command.command("key")
@as_json
def key_command(as_json: bool) -> None:
    """Make this host's SSH key for the repository where it is missing, and print its public half."""
    made = key.make(load.load().backup.stanza)
    _print(asdict(made), as_json, lambda result: [result["public_key"]])


def _print(result: dict[str, Any], as_json: bool, human: Any) -> None:
    click.echo(json.dumps(result, default=str) if as_json else "\n".join(human(result)))
