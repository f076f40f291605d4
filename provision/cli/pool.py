"""`provision pool`: control the connection pooler of this host, as root."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from provision.cli._echo import echo
from provision.host.pooler import apply as applying
from provision.host.pooler import console, login, rehearsal
from provision.host.pooler import take as taking
from provision.plan import load

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("pool")
def command() -> None:
    """Inspect and control the connection pooler of this host."""


@command.command()
@as_json
def status(as_json: bool) -> None:
    """Show active and waiting clients and server connections by pool."""
    seen = console.status()
    if as_json:
        echo(json.dumps(seen))
        return
    echo(f"{seen['version']} on port {seen['port']}{', paused' if seen['paused'] else ''}")
    for row in seen["pools"]:
        echo("  ".join(f"{key} {value}" for key, value in row.items()))


@command.command()
@click.option("--wait", default=30.0, show_default=True, help="Seconds to wait for running transactions.")
@click.option(
    "--at-most", default=0, help="Resume automatically after this many seconds; clients wait as long [never]."
)
@as_json
def pause(wait: float, at_most: int, as_json: bool) -> None:
    """Hold clients, and close each server connection when its transaction ends."""
    done = console.pause(wait, at_most)
    if as_json:
        echo(json.dumps({"paused": done.pooler, "running": done.running}))
    elif not done.pooler:
        echo("no pooler runs here: nothing to pause")
    elif done.running:
        echo(f"paused; {done.running} transactions still run after {wait:.0f} s and will be terminated with the server")
    else:
        echo("paused: clients wait, all server connections are closed")


@command.command()
@as_json
def resume(as_json: bool) -> None:
    """Resume the pooler; succeed even if nothing is paused or no pooler runs."""
    done = console.resume()
    echo(json.dumps({"resumed": done}) if as_json else "resumed" if done else "nothing was paused")


@command.command()
@as_json
def reload(as_json: bool) -> None:
    """Reload the pooler's configuration and certificates."""
    done = console.reload()
    if as_json:
        echo(json.dumps({"reloaded": done}))
        return
    echo("reloaded" if done else "no pooler runs here: nothing to reload")


@command.command()
@as_json
def take(as_json: bool) -> None:
    """Reload the pooler if its files changed, and report pending restarts."""
    taken = taking.take()
    echo(json.dumps(asdict(taken)) if as_json else "\n".join(_lines(taken)))


@command.command()
@as_json
def apply(as_json: bool) -> None:
    """Start or reload the pooler, restart it if pending and allowed, and log in as each role.

    Standard input: a JSON object, role to password.
    """
    done = applying.apply(load.load(), json.load(sys.stdin))
    facts = {"changed": done.changed, **asdict(done), "warnings": list(done.warnings)}
    echo(json.dumps(facts) if as_json else "\n".join([*done.actions, *done.warnings] or ["no change"]))


def _lines(taken: taking.Taken) -> list[str]:
    done = [word for word, was in (("reloaded", taken.reloaded), ("resumed", taken.resumed)) if was]
    return [*(done or ["no change"]), *(f"pending restart: {name}" for name in taken.pending)]


@command.command()
@click.option("--configuration", type=click.Path(path_type=Path), default=taking.CONFIGURATION, show_default=True,
              help="Main configuration file.")  # fmt: skip
@as_json
def rehearse(configuration: Path, as_json: bool) -> None:
    """Test a configuration: start a scratch pooler, look up a user through it, and stop it."""
    rehearsal.rehearse(configuration)
    if as_json:
        echo(json.dumps({"configuration": str(configuration), "starts": True}))
        return
    echo(f"a pooler starts with {configuration} and can look up users")


@command.command()
@click.option("--database", "url", required=True, help="libpq string of a database behind the pooler, without a user.")
@as_json
def prove(url: str, as_json: bool) -> None:
    """Log in through the pooler as each role of a JSON object (role to password) on stdin."""
    found = login.prove(url, json.load(sys.stdin))
    echo(json.dumps({"logins": list(found)}) if as_json else "\n".join(found))
