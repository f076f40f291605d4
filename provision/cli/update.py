"""`provision update`: newer packages within their major on this host, as root; update.yml runs it host by host."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict

import click

from provision.cli._echo import echo
from provision.cli._process import require_root, stoppable
from provision.cli._progress import working
from provision.host.update import run as updates
from provision.plan import load

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("update")
def command() -> None:
    """Update the database packages within their major."""
    require_root("provision update needs root", "provision update")


@command.command()
@as_json
def check(as_json: bool) -> None:
    """Show available updates, their restarts, and the defects they fix. Exit 3 if there is something to do."""
    with working("reading the package lists"):
        found = updates.look(load.load())
    rows = updates.lines(found)
    echo(json.dumps({**asdict(found), "lines": rows}) if as_json else "\n".join(rows))
    if not found.empty:
        sys.exit(3)


@command.command()
@as_json
def run(as_json: bool) -> None:
    """Back up, install the new versions, restart behind a paused pooler, and verify."""
    plan = load.load()
    with stoppable(), working("reading the package lists") as narrate:  # so that the pooler resumes
        found = updates.look(plan)
        facts = {} if found.empty else updates.run(plan, found, narrate)
    if as_json:
        echo(json.dumps({"changed": bool(facts), **facts}, default=str))
        return
    rows = [f"{each.name}: {each.installed} -> {each.candidate}" for each in found.packages]
    rows += [f"restarted {unit}" for unit in facts.get("restarted", ())]
    rows += [f"PostgreSQL was restarted in {facts['down_seconds']} s"] if "down_seconds" in facts else []
    if "primary" in facts:
        rows.append(f"{facts['primary']} is the primary; clients of the poolers waited {facts['paused_seconds']} s")
    rows += _extensions(facts.get("extensions", {}))
    echo("\n".join(rows or ["nothing to update"]))


@command.command()
@as_json
def extensions(as_json: bool) -> None:
    """Update the extensions of a cluster, on its primary, once every member has their new files."""
    done, waits = updates.extensions(load.load())
    if as_json:
        echo(json.dumps({"changed": bool(done), "extensions": done, "warnings": waits}))
    else:
        echo("\n".join([*_extensions(done), *waits] or ["nothing to update"]))


def _extensions(found: Mapping[str, list[str]]) -> list[str]:
    return [f"updated in {name}: {', '.join(each)}" for name, each in found.items()]
