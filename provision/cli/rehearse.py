"""`provision rehearse`: start a scratch server with a configuration before the real one meets it."""

from __future__ import annotations

from pathlib import Path

import click

from provision.host.rehearsal import rehearse


@click.command("rehearse")
@click.option("--programs", type=click.Path(path_type=Path), required=True, help="The server's folder of programs.")
@click.option("--configuration", type=click.Path(path_type=Path), required=True, help="The folder of postgresql.conf.")
def command(programs: Path, configuration: Path) -> None:
    """Start a scratch server with a configuration, and stop it: found before a reload or a restart needs it."""
    rehearse(programs, configuration)
    click.echo(f"a server starts with {configuration}")
