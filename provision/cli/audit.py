"""`provision audit`: what is wrong in a whole fleet, asked from the controller over SSH, read-only."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click


@click.command("audit")
@click.option("-i", "--inventory", "inventories", multiple=True, required=True, help="As ansible-playbook takes it.")
@click.option("-l", "--limit", default="", help="Only these hosts, as ansible-playbook takes it.")
@click.option("--vault-password-file", type=click.Path(exists=True), help="Where the inventory's vault is encrypted.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report that opens offline.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    inventories: tuple[str, ...], limit: str, vault_password_file: str | None, html: Path | None, as_json: bool
) -> None:
    """Compare every database host with what its last run left, and let its own doctor look; change nothing.

    Exit 3 when something is to be done on any host; one that cannot be reached is a finding.
    """
    from provision.controller import audit, fleet, show

    vault = ["--vault-password-file", vault_password_file] if vault_password_file else []
    targets = fleet.read(inventories, limit, vault)
    seen, seconds = audit.audit(targets, Path(__file__).parents[1])
    if html:
        html.write_text(show.page(seen, seconds))
        click.echo(f"report: {html}", err=True)
    if as_json:
        hosts = [{**asdict(one), "state": one.state} for one in seen]
        click.echo(json.dumps({"seconds": round(seconds, 2), "hosts": hosts}, indent=2))
    else:
        show.table(seen)
    click.echo(f"{len(seen)} hosts in {seconds:.1f} s, {sum(len(one.counted) for one in seen)} to mend", err=True)
    sys.exit(3 if any(one.counted for one in seen) else 0)
