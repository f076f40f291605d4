"""`provision rehearse`: test a server configuration with a scratch server before the real one uses it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from provision.cli._echo import echo
from provision.host.rehearsal import rehearse


@click.command("rehearse")
@click.option("--programs", type=click.Path(path_type=Path), required=True, help="Directory of the server's programs.")
@click.option("--configuration", type=click.Path(path_type=Path), required=True, help="Directory of postgresql.conf.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(programs: Path, configuration: Path, as_json: bool) -> None:
    """Test a configuration: start and stop a scratch server before a reload or restart of the real one."""
    rehearse(programs, configuration)
    if as_json:
        echo(json.dumps({"configuration": str(configuration), "starts": True}))
        return
    echo(f"a server starts with {configuration}")
