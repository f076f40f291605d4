"""`provision dcs`: etcd of this host, as root; site.yml calls it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from provision.cli._echo import echo
from provision.host.dcs import apply as dcs
from provision.host.dcs import maintain
from provision.plan import load


@click.group("dcs")
def command() -> None:
    """Manage etcd on this host."""


@command.command()
@click.option("--check", is_flag=True, help="Change nothing; report whether etcd runs with its current files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def apply(check: bool, as_json: bool) -> None:
    """Start etcd or join the running cluster; create its users from passwords on stdin (JSON)."""
    if check:
        pending = dcs.pending(load.load())
        text = "\n".join(pending) or "no change"
        echo(json.dumps({"changed": bool(pending), "pending": pending}) if as_json else text)
        return
    done = dcs.apply(load.load(), json.load(sys.stdin), lambda text: echo(text, err=True))
    if as_json:
        echo(json.dumps({"changed": done.changed, **asdict(done)}))
    else:
        echo("\n".join(["changed" if done.changed else "no change", *done.warnings]))


@command.command("maintain")
def maintain_command() -> None:
    """Take a snapshot, defragment this member if needed; exit 3 if etcd reports an alarm."""
    done = maintain.maintain(load.load())
    echo(f"{done.snapshot}: {done.size} bytes, {done.in_use} in use{', defragmented' if done.defragmented else ''}")


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the etcd member NAME, which is no longer in the inventory."""
    dcs.remove(load.load(), name)
    echo(f"removed {name}")


@command.command()
def restart() -> None:
    """Restart this member after moving leadership away; refuse while another member is down."""
    dcs.restart(load.load())
