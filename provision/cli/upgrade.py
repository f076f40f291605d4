"""`provision upgrade`: move this host to another PostgreSQL major, as root; upgrade.yml prepares the host for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from provision.cli._echo import echo
from provision.cli._process import require_root, stoppable
from provision.cli._progress import working
from provision.host.upgrade import back, commands, context, journal, members, show
from provision.host.upgrade import run as upgrades
from provision.plan import load

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
method = click.option(
    "--method", type=click.Choice(journal.METHODS), default="copy", show_default=True, help="How the data moves."
)
confirm = click.option("--confirm", default="", help="Name of the host, or of its cluster, to confirm.")


@click.group("upgrade")
def command() -> None:
    """Move this host to another PostgreSQL major."""
    require_root("an upgrade stops and starts the server", "provision upgrade")


@command.command()
@confirm
@click.option("--to", default=0, help="The new major.")
@as_json
def part(confirm: str, to: int, as_json: bool) -> None:
    """Print this host's part: alone, primary or replica. Exit 2 for a wrong --confirm."""
    plan = load.load()
    if confirm:
        commands.refuse(plan, confirm)
    found = members.part(plan, to)
    echo(json.dumps({"changed": False, "part": found, "members": members.names(plan)}) if as_json else found)


@command.command()
@method
@click.option("--back", is_flag=True, help="After a rollback.")
@as_json
def leave(method: str, back: bool, as_json: bool) -> None:
    """Take this replica out of the retired cluster; site.yml's roles then clone it."""
    with working("stopping the replica") as narrate:
        changed = members.leave(method, narrate, back=back)
    _changed(changed, as_json)


@command.command()
@as_json
def forget(as_json: bool) -> None:
    """Replace the retired cluster in etcd, on the upgraded member."""
    with working("deleting the other cluster from etcd") as narrate:
        changed = members.forget(narrate)
    _changed(changed, as_json)


def _changed(changed: bool, as_json: bool) -> None:
    echo(json.dumps({"changed": changed}) if as_json else "changed" if changed else "no change")


@command.command()
@as_json
def create(as_json: bool) -> None:
    """Create the configuration of the new major's cluster, which cannot be started yet."""
    changed = upgrades.create(load.load(journal.NEW_PLAN))
    echo(json.dumps({"changed": changed}) if as_json else "created" if changed else "no change")


@command.command("check")
@method
@as_json
def check_command(method: str, as_json: bool) -> None:
    """Check all that would stop the upgrade while the old server serves; show its stages."""
    with working("checking the old server") as narrate:
        upgrade = _upgrade(method, narrate)
        replica = members.part(load.load(), upgrade.new.major) == journal.REPLICA
        facts = members.checked(upgrade) if replica else show.checked(upgrade, upgrades.judge(upgrade))
    echo(json.dumps(facts) if as_json else "\n".join(show.lines(facts, load.load())))


@command.command()
@method
@confirm
@as_json
def run(method: str, confirm: str, as_json: bool) -> None:
    """Upgrade, or continue an upgrade that was killed. Without --confirm, check and exit 3."""
    with stoppable(), working("checking the old server") as narrate:  # so that the pooler resumes
        upgrade = _upgrade(method, narrate)
        if not confirm and journal.state(journal.read()) not in journal.NEW_SERVES:
            facts = show.checked(upgrade, upgrades.judge(upgrade))
        else:
            facts = upgrades.run(upgrade, confirm or commands.word(upgrade.new_plan))
    echo(json.dumps(facts, default=str) if as_json else "\n".join(show.lines(facts, load.load())))
    if "start" in facts:
        sys.exit(3)


@command.command()
@confirm
@click.option("--confirm-loss", default="", help='Type "discard": what the new server has written is lost.')
@as_json
def rollback(confirm: str, confirm_loss: str, as_json: bool) -> None:
    """Start the old server again."""
    with working("going back to the old server") as narrate:
        facts = back.rollback(_upgrade("", narrate), confirm, confirm_loss)
    echo(json.dumps(facts, default=str) if as_json else "\n".join(show.lines(facts, load.load())))


@command.command()
@confirm
@as_json
def release(confirm: str, as_json: bool) -> None:
    """Delete the cluster that no longer serves."""
    with working("deleting the old cluster") as narrate:
        done = back.release(_upgrade("", narrate), confirm)
    echo(json.dumps({"changed": bool(done), "removed": done}) if as_json else "\n".join(done))


@command.command()
@as_json
def status(as_json: bool) -> None:
    """Show the last upgrade of this host, its stages and what to do next."""
    facts = journal.read()
    echo(json.dumps(facts) if as_json else "\n".join(show.lines(facts, load.load())))


def _upgrade(method: str, narrate: Callable[[str], None]) -> context.Upgrade:
    old, new = context.plans()
    facts: dict[str, Any] = journal.read()
    return upgrades.begin(old, new, method or str(facts.get("method", "copy")), narrate)
