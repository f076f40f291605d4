"""`provision plan`: the description of a host."""

from __future__ import annotations

import json

import click

from provision.plan import convert


@click.group("plan", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Show the plan of a host."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("convert", hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert_command(as_json: bool) -> None:
    """Convert a host of the old layout (host.json); as root."""
    changed = convert.convert()
    click.echo(json.dumps({"changed": changed}) if as_json else "converted" if changed else "nothing to convert")
