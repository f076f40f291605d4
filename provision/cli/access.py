"""`provision access`: converge roles, databases, extensions and grants. On the host, as the user postgres."""

from __future__ import annotations

import json
import sys

import click

from provision.cli._echo import echo
from provision.host.access import converge


@click.command("access")
@click.option("--server", default="host=/var/run/postgresql", show_default=True, help="libpq string of the superuser.")
@click.option("--plan", is_flag=True, help="Print the changes without making them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(server: str, plan: bool, as_json: bool) -> None:
    """Converge roles, databases, extensions and grants to a JSON description on stdin.

    Prints each change; a second call changes nothing. Passwords are SCRAM verifiers and are never printed.
    """
    changes = converge(server, json.load(sys.stdin), plan=plan)
    echo(json.dumps({"changes": changes}, indent=2) if as_json else "\n".join(changes) or "no change")
