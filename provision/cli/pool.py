"""`provision pool`: the connection pooler of this host, as root."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from provision.host.pooler import console, login, rehearsal
from provision.host.pooler import take as taking

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("pool")
def command() -> None:
    """Look at the connection pooler of this host; pause it around a restart of the server."""


@command.command()
@as_json
def status(as_json: bool) -> None:
    """Show clients and server connections by pool, and who waits."""
    seen = console.status()
    if as_json:
        click.echo(json.dumps(seen))
        return
    click.echo(f"{seen['version']} on port {seen['port']}{', paused' if seen['paused'] else ''}")
    for row in seen["pools"]:
        click.echo("  ".join(f"{key} {value}" for key, value in row.items()))


@command.command()
@click.option("--wait", default=30.0, show_default=True, help="Seconds for transactions to end.")
@click.option("--at-most", default=0, help="Resume by itself after so many seconds, which clients wait too [never].")
def pause(wait: float, at_most: int) -> None:
    """Let clients wait, and close every server connection once its transaction has ended."""
    done = console.pause(wait, at_most)
    if not done.pooler:
        click.echo("no pooler runs here: nothing to pause")
    elif done.running:
        click.echo(f"paused; {done.running} transactions still run after {wait:.0f} s and will be cut with the server")
    else:
        click.echo("paused: clients wait, no server connection is open")


@command.command()
def resume() -> None:
    """Serve again. No error where nothing is paused, or no pooler runs."""
    click.echo("resumed" if console.resume() else "nothing was paused")


@command.command()
def reload() -> None:
    """Let the pooler read its files and certificates again."""
    click.echo("reloaded" if console.reload() else "no pooler runs here: nothing to reload")


@command.command()
@as_json
def take(as_json: bool) -> None:
    """Reload if something on disk is newer than what the pooler has read; say what waits for a restart."""
    taken = taking.take()
    click.echo(json.dumps(asdict(taken)) if as_json else "\n".join(_told(taken)))


def _told(taken: taking.Taken) -> list[str]:
    done = [word for word, was in (("reloaded", taken.reloaded), ("resumed", taken.resumed)) if was]
    return [*(done or ["no change"]), *(f"waits for a restart: {name}" for name in taken.pending)]


@command.command()
@click.option("--configuration", type=click.Path(path_type=Path), default=taking.CONFIGURATION, show_default=True)
def rehearse(configuration: Path) -> None:
    """Start a scratch pooler with a configuration, log in through it, and stop it."""
    rehearsal.rehearse(configuration)
    click.echo(f"a pooler starts with {configuration} and looks users up")


@command.command()
@click.option("--database", "url", required=True, help="libpq string of a database through the pooler, without user.")
def prove(url: str) -> None:
    """Log each role of a JSON object on stdin (role to password) in through the pooler, to its very server session."""
    click.echo("\n".join(login.prove(url, json.load(sys.stdin))))
