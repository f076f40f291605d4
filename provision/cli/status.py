"""`provision status`: what this host is and how it is doing, as the last run of site.yml told it."""

from __future__ import annotations

import json
import socket

import click

from provision.host import status as summary


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--name", default="", help="The host's name [default: its host name].")
def command(as_json: bool, name: str) -> None:
    """Show what was built here, how to reach it, backups, drills, house-keeping and warnings; on the host."""
    facts = summary.gather(name or socket.gethostname().partition(".")[0])
    shown = summary.lines(facts)
    click.echo(json.dumps({**facts, "lines": shown}, default=str) if as_json else "\n".join(shown))
