"""`provision restore`: restore the cluster, or a database from a dump; on the database host, as root."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from provision import system
from provision.cli._echo import echo
from provision.cli._process import require_root
from provision.cli._progress import working
from provision.database import connect_pinned
from provision.errors import HostError
from provision.host.backup import exchange, members, restore, show
from provision.host.backup import load as dumps
from provision.host.backup import request as requests
from provision.plan import load

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _request(function: Any) -> Any:
    options = (
        click.option(
            "--target", default="latest", show_default=True, help="latest, immediate, time:, xid:, name: or lsn:"
        ),
        click.option("--set", "set_", default="", help="Backup set to restore [default: the newest that fits]."),
        click.option("--stanza", default="", help="Stanza of another host [default: this host's]."),
        click.option(
            "--repository", type=int, default=0, help="Number of the repository [default: the first that fits]."
        ),
        click.option("--timeline", type=int, default=0, help="Timeline to follow [default: the newest]."),
        click.option("--delta", is_flag=True, help="Overwrite the data directory; no copy is kept."),
        click.option("--beside", type=int, default=0, help="Port of a copy beside the original [default: in place]."),
        click.option(
            "--action",
            type=click.Choice(["promote", "pause"]),
            default="promote",
            show_default=True,
            help="Action when the target is reached.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.group("restore")
def command() -> None:
    """Restore the cluster to a point in time, or a database from a dump."""
    require_root("a restore stops and starts the server", "provision restore")


@command.command("plan")
@_request
@as_json
def plan_command(as_json: bool, set_: str, **request: Any) -> None:
    """List the stages of a restore and the reachable window; change nothing."""
    plan, asked = load.load(), requests.Request(set=set_, **request)
    with working("checking the request"):
        members.judge(plan, asked)
        found = requests.as_facts(requests.prepare(plan, asked))
    echo(json.dumps(found) if as_json else "\n".join(f"{n}. {text}" for n, text in enumerate(found["stages"], 1)))


@command.command("run")
@_request
@click.option("--confirm", default="", help="This host's name, or its cluster's, to confirm that the data is replaced.")
@click.option("--confirm-delta", default="", help='Type "overwrite" to confirm; no copy is kept.')
@as_json
def run_command(as_json: bool, set_: str, **request: Any) -> None:
    """Restore the cluster. Without --confirm, show the plan and exit 3."""
    plan, asked = load.load(), requests.Request(set=set_, **request)
    with working("checking the request"):
        members.judge(plan, asked)
        prepared = requests.prepare(plan, asked)
    if not (prepared.request.beside or prepared.request.confirm):
        word = restore.confirmation(plan)
        start = prepared.request.confirming(word)
        lines = [f"{number}. {text}" for number, text in enumerate(prepared.stages, 1)]
        lines.append(f"nothing was changed; to start: {start}; or restore.yml with -e restore_confirm={word}")
        echo(json.dumps({**requests.as_facts(prepared), "start": start}) if as_json else "\n".join(lines))
        sys.exit(3)
    for number, text in enumerate(prepared.stages, 1):
        echo(f"{number}. {text}", err=True)
    with working("starting the restore") as narrate:
        result = restore.run(plan, prepared, narrate)
    _print(result, as_json)


@command.command("dump")
@click.option("--name", default="", help="Dump to restore [default: the newest].")
@click.option("--into", default="", help="New database [default: replace the dumped one, which is renamed and kept].")
@click.option("--confirm", default="", help="The database's name, to confirm that it is replaced.")
@as_json
def dump_command(name: str, into: str, confirm: str, as_json: bool) -> None:
    """Restore a dump after checking every file of it."""
    system.become()
    with working("checking the dump") as narrate:
        result = dumps.load(load.load(), name, into, confirm, narrate)
    _print(result, as_json)


@command.command("clean-up")
@as_json
def clean_up_command(as_json: bool) -> None:
    """Clean up after a killed restore of a dump.

    Drops the scratch database and reopens the old database."""
    system.become()
    with connect_pinned(load.load().server.url("postgres"), application="provision restore") as session:
        done = exchange.clean_up(session)
    if not done and (left := exchange.unfinished()):
        raise HostError("the server is read-only", seen=left, run="provision restore promote; then clean up again")
    echo(json.dumps({"changes": done}) if as_json else "\n".join(done) or "nothing to clean up")


@command.command("promote")
@click.option("--beside", type=int, default=0, help="Port of the copy to promote [default: in place].")
@as_json
def promote_command(beside: int, as_json: bool) -> None:
    """Promote a restore that was left read-only (--action pause) or was killed during promotion."""
    with working("promoting the server") as narrate:
        result = restore.promote(load.load(), beside, narrate)
    _print(result, as_json)


@command.command("release")
@click.option("--confirm", default="", help="This host's name, to confirm the removal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def release_command(confirm: str, as_json: bool) -> None:
    """Remove the data directories that earlier restores moved aside."""
    done = restore.release(load.load(), confirm)
    echo(json.dumps({"removed": done}) if as_json else "\n".join(done) or "no data directory was moved aside")


def _print(result: dict[str, Any], as_json: bool) -> None:
    echo(json.dumps(result, default=str) if as_json else "\n".join(show.restored(result)))
