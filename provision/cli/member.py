"""`provision member`: Patroni of this host, as root; site.yml calls it."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from provision.cli._echo import echo
from provision.cli._process import stoppable
from provision.host.member import apply as member
from provision.host.member import restart as restarting
from provision.plan import load


@click.group("member")
def command() -> None:
    """Manage this host's membership in a cluster."""


@command.command()
@click.option("--check", is_flag=True, help="Change nothing; report what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def apply(check: bool, as_json: bool) -> None:
    """Start Patroni, which takes over the server or clones another member; load changed settings."""
    plan = load.load()
    if check:
        pending = member.pending(plan)
        text = "\n".join(pending) or "no change"
        echo(json.dumps({"changed": bool(pending), "pending": pending}) if as_json else text)
        return
    done = member.apply(plan, lambda text: echo(text, err=True))
    warnings = list(member.warnings(plan, done))
    if as_json:
        echo(json.dumps({"changed": done.changed, **asdict(done), "warnings": warnings}))
    else:
        echo("\n".join(["changed" if done.changed else "no change", *warnings]))


@command.command()
def restart() -> None:
    """Restart Patroni without stopping PostgreSQL; automatic failover is off meanwhile."""
    with stoppable():
        restarting.restart(load.load(), lambda text: echo(text, err=True))
