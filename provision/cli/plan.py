"""`provision plan`: print the plan of hosts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from provision import distributions
from provision.cli._echo import echo
from provision.cli._progress import working
from provision.errors import UsageError
from provision.plan import convert


@click.group("plan", invoke_without_command=True)
@click.option("--inventory", "-i", "inventories", multiple=True, help="Inventory of the hosts (repeatable).")
@click.option("--limit", default="", help="Hosts of the inventory, as for ansible-playbook.")
@click.option("--vault-password-file", default="", help="File with the vault's password.")
@click.option("--os", "key", default=distributions.DEFAULT_KEY, show_default=True, help="Distribution to assume.")
@click.option("--cpus", default=4, show_default=True, help="CPUs to assume.")
@click.option("--memory-mb", default=8192, show_default=True, help="Memory to assume.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    context: click.Context,
    inventories: tuple[str, ...],
    limit: str,
    vault_password_file: str,
    key: str,
    cpus: int,
    memory_mb: int,
    as_json: bool,
) -> None:
    """Print the plan of each database host of an inventory, without contacting the hosts.

    Exit 1 if site.yml would refuse a host. What only a host knows is assumed: --os, --cpus, --memory-mb.
    """
    if context.invoked_subcommand:
        return
    if not inventories:
        raise UsageError("no inventory", where="--inventory", allowed="provision plan --inventory inventories/prod")
    from provision.controller import plans  # needs Ansible, which a host does not have

    assumed = plans.Assumed(distributions.by_key(key), cpus, memory_mb)
    with working("reading the inventory"):
        found = plans.plans(inventories, assumed, limit=limit, vault_password_file=vault_password_file)
    if as_json:
        echo(json.dumps({name: _facts(outcome) for name, outcome in found.items()}, indent=2, sort_keys=True))
    else:
        _show(found)
    context.exit(0 if all(outcome.plan for outcome in found.values()) else 1)


def _facts(outcome: Any) -> dict[str, Any]:
    if outcome.plan:
        return {"plan": asdict(outcome.plan), "warnings": list(outcome.warnings)}
    return {"problems": list(outcome.problems)}


def _show(found: dict[str, Any]) -> None:
    import yaml

    for name, outcome in found.items():
        echo(f"# {name}")
        for problem in outcome.problems:
            echo(f"refused: {problem}")
        if outcome.plan:
            facts = asdict(outcome.plan)
            facts["server"]["settings"] = {
                row.name: f"{row.text}  ({row.reason})" for row in outcome.plan.server.settings
            }
            echo(yaml.safe_dump(json.loads(json.dumps(facts)), sort_keys=False, width=120).rstrip())
        for warning in outcome.warnings:
            echo(f"warning: {warning}", err=True)


@command.command("convert", hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert_command(as_json: bool) -> None:
    """Remove host.json and the other files of version 0.1, keeping the evidence; on the host, as root."""
    changed = convert.convert()
    echo(json.dumps({"changed": changed}) if as_json else "converted" if changed else "nothing to convert")
