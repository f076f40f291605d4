"""`provision status`: a summary of this host."""

from __future__ import annotations

import json

import click

from provision.cli._echo import echo
from provision.host import status as summary


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--name", default="", help="Name to show [default: the host's name in the inventory].")
def command(as_json: bool, name: str) -> None:
    """Show versions, connection URL, backups, restore tests, maintenance and warnings of this host."""
    facts = summary.gather(name)
    shown = summary.lines(facts)
    echo(json.dumps({**facts, "lines": shown}, default=str) if as_json else "\n".join(shown))
