"""`provision tls`: certificates of this host, as root."""

from __future__ import annotations

import json

import click

from provision.cli._echo import echo
from provision.host import tls
from provision.plan import load


@click.group("tls")
def command() -> None:
    """Manage the certificates that services of this host use."""


@command.command("serve")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def serve(as_json: bool) -> None:
    """Reload services that do not serve the installed certificate."""
    reloaded = tls.serve(load.load())
    if as_json:
        echo(json.dumps({"changed": bool(reloaded), "reloaded": reloaded}))
    else:
        echo("\n".join(f"reloaded {unit}" for unit in reloaded) or "every service serves the installed certificate")
