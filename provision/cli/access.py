"""`provision access`: converge roles, databases, extensions and grants. On the host, as the user postgres."""

from __future__ import annotations

import json
import sys

import click

from provision.cli._echo import echo
from provision.database import is_standby
from provision.host.access import converge


@click.command("access")
@click.option("--server", default="host=/var/run/postgresql", show_default=True, help="libpq string of the superuser.")
@click.option("--skip-standby", is_flag=True, help="Do nothing on a replica of a cluster.")
@click.option("--plan", is_flag=True, help="Print the changes without making them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(server: str, skip_standby: bool, plan: bool, as_json: bool) -> None:
    """Converge roles, databases, extensions and grants to a JSON description on stdin.

    Prints each change; a second call changes nothing. Passwords are SCRAM verifiers and are never printed.
    """
    expected = json.load(sys.stdin)
    standby = skip_standby and is_standby(f"{server} dbname=postgres")
    changes = [] if standby else converge(server, expected, plan=plan)
    echo(json.dumps({"changes": changes}, indent=2) if as_json else "\n".join(changes) or "no change")
