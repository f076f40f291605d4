"""`provision restore`: bring back the cluster, or a database from a dump; on the database host, as root."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from provision.errors import HostError
from provision.host.backup import load, plan, restore, show, tool

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _wish(function: Any) -> Any:
    options = (
        click.option(
            "--target", default="latest", show_default=True, help="latest, immediate, time:, xid:, name:, lsn:"
        ),
        click.option("--set", "set_", default="", help="Set to begin with [default: the newest that fits]."),
        click.option("--stanza", default="", help="Another host's stanza [default: this host's]."),
        click.option("--timeline", type=int, default=0, help="Timeline to follow [default: the newest]."),
        click.option("--delta", is_flag=True, help="Reuse the data directory: no copy of it is kept."),
        click.option("--beside", type=int, default=0, help="Port of a copy beside the original [default: in place]."),
        click.option("--action", type=click.Choice(["promote", "pause"]), default="promote", show_default=True),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.group("restore")
def command() -> None:
    """Bring back the cluster to a moment, or a database from a dump."""
    if os.geteuid() != 0:
        raise HostError(
            "a restore stops and starts the server", seen=f"user id {os.geteuid()}", run="sudo provision restore"
        )


@command.command("plan")
@_wish
@as_json
def plan_command(as_json: bool, set_: str, **wish: Any) -> None:
    """Say what would be stopped, moved and restored, and what can be reached; change nothing."""
    found = restore.as_facts(restore.prepare(plan.read(), restore.Wish(set=set_, **wish)))
    click.echo(json.dumps(found) if as_json else "\n".join(f"{n}. {text}" for n, text in enumerate(found["stages"], 1)))


@command.command("run")
@_wish
@click.option("--confirm", default="", help="This host's name: its data is replaced.")
@click.option("--confirm-delta", default="", help="overwrite: the data directory is, without a copy.")
@as_json
def run_command(as_json: bool, set_: str, **wish: Any) -> None:
    """Do it."""
    wanted = plan.read()
    prepared = restore.prepare(wanted, restore.Wish(set=set_, **wish))
    for number, text in enumerate(prepared.stages, 1):
        click.echo(f"{number}. {text}", err=True)
    _print(restore.run(wanted, prepared, lambda text: click.echo(text, err=True)), as_json)


@command.command("dump")
@click.option("--name", default="", help="Dump to restore [default: the newest].")
@click.option("--into", default="", help="New database [default: in place of the dumped one, which is kept renamed].")
@click.option("--confirm", default="", help="The database's name, to put the dump in its place.")
@as_json
def dump_command(name: str, into: str, confirm: str, as_json: bool) -> None:
    """Restore a dump, checked whole before anything is touched."""
    tool.be_postgres()
    _print(load.load(plan.read(), name, into, confirm, lambda text: click.echo(text, err=True)), as_json)


@command.command("promote")
@click.option("--beside", type=int, default=0, help="Port of the copy that is meant [default: in place].")
@as_json
def promote_command(beside: int, as_json: bool) -> None:
    """End a restore that was left read-only (--action pause), or was killed when it was about to end."""
    _print(restore.promote(plan.read(), beside, lambda text: click.echo(text, err=True)), as_json)


@command.command("release")
@click.option("--confirm", default="", help="This host's name.")
def release_command(confirm: str) -> None:
    """Remove the data directories that restores moved aside."""
    click.echo("\n".join(restore.release(plan.read(), confirm)) or "nothing was moved aside")


def _print(result: dict[str, Any], as_json: bool) -> None:
    click.echo(json.dumps(result, default=str) if as_json else "\n".join(show.restored(result)))
