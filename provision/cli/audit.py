"""`provision audit`: deviations in a whole fleet, read from the controller over SSH."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from provision.cli._echo import echo
from provision.cli._progress import working


@click.command("audit")
@click.option(
    "-i", "--inventory", "inventories", multiple=True, required=True, help="Inventory, as for ansible-playbook."
)
@click.option("-l", "--limit", default="", help="Hosts to check, as for ansible-playbook.")
@click.option("--vault-password-file", type=click.Path(exists=True), help="Password of the inventory's vault.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a report for offline viewing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    inventories: tuple[str, ...], limit: str, vault_password_file: str | None, html: Path | None, as_json: bool
) -> None:
    """Compare every database host with its last run, and collect the findings of its doctor. Read-only.

    Exit 3 while a finding needs action on any host; an unreachable host is a finding.
    """
    from provision.controller import audit, fleet, show

    vault = ["--vault-password-file", vault_password_file] if vault_password_file else []
    with working("reading the inventory") as narrate:
        targets = fleet.read(inventories, limit, vault)
        narrate(f"auditing {len(targets)} host{'' if len(targets) == 1 else 's'}")
        seen, seconds = audit.audit(targets, Path(__file__).parents[1], inventories)
    if html:
        html.write_text(show.page(seen, seconds, inventories))
        echo(f"report: {html}", err=True)
    if as_json:
        rows = [{**asdict(one), "state": one.state} for one in seen]
        echo(json.dumps({"seconds": round(seconds, 2), "hosts": rows}, indent=2))
    else:
        show.table(seen)
    hosts = f"{len(seen)} host{'' if len(seen) == 1 else 's'}"
    echo(f"{hosts} in {seconds:.1f} s, {sum(len(one.counted) for one in seen)} to fix", err=True)
    sys.exit(3 if any(one.counted for one in seen) else 0)
