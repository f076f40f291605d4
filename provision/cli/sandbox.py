"""`provision sandbox`: disposable Debian hosts on this machine, for trials and tests."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from provision import distributions
from provision.cli._echo import echo
from provision.cli._narration import Stderr

if TYPE_CHECKING:
    from provision.controller.containers import Container
    from provision.controller.sandbox import Sandbox


DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(name="sandbox")
@click.option("--project", type=DIRECTORY, default=Path(), help="Project directory [default: current directory].")
@click.pass_context
def command(context: click.Context, project: Path) -> None:
    """Manage disposable Debian hosts on this machine (podman containers with systemd and sshd)."""
    context.obj = project


def _sandbox(context: click.Context) -> "Sandbox":
    from provision.controller.machine import Machine
    from provision.controller.sandbox import Sandbox

    assert isinstance(context.obj, Path)  # noqa: S101 - set by the group
    return Sandbox(context.obj, Machine(Stderr()))


def _show(hosts: "list[Container]", *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                **dataclasses.asdict(each.spec),
                "state": each.state,
                "container": each.container,
                "ports": each.ports,
            }
            for each in hosts
        ]
        echo(json.dumps(rows, indent=2))
        return
    titles = ("NAME", "GROUP", "OS", "STATE", "ADDRESS", "5432 ON 127.0.0.1", "6432 ON 127.0.0.1", "MEMORY", "SHM")
    table: list[tuple[Any, ...]] = [titles]
    for each in hosts:
        spec = each.spec
        ports = (each.ports.get(5432, "-"), each.ports.get(6432, "-"))
        table.append(
            (spec.name, spec.group, spec.os, each.state, spec.address, *ports, spec.memory or "-", spec.shm_size)
        )
    widths = [max(len(str(row[column])) for row in table) for column in range(len(titles))]
    for row in table:
        echo("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@command.command()
@click.argument("names", nargs=-1)
@click.option("--hosts", default="", help="Comma-separated host names, an alternative to NAMES.")
@click.option(
    "--os", "os", help=f"Distribution: {', '.join(distributions.keys())} [default: {distributions.DEFAULT_KEY}]."
)
@click.option("--memory", help="Memory limit [default: 2g].")
@click.option("--shm-size", help="Size of /dev/shm, used by parallel index builds [default: 1g].")
@click.option("--group", help="Inventory group: database, dcs, pooler, backup or client [default: database].")
@click.option("--mirror", default="", help="Debian mirror [default: this machine's].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def up(
    context: click.Context, /, names: tuple[str, ...], hosts: str, mirror: str, as_json: bool, **options: str | None
) -> None:
    """Create or start the hosts NAMES (default: db1) and wait for SSH."""
    chosen = list(dict.fromkeys([*names, *(name for name in hosts.split(",") if name)])) or ["db1"]
    given = {key: value for key, value in options.items() if value is not None}
    _show(_sandbox(context).up(chosen, given, mirror), as_json=as_json)


@command.command()
@click.argument("names", nargs=-1)
@click.option("--images", is_flag=True, help="Also remove cached images that no host uses.")
@click.option("--all", "everything", is_flag=True, help="Remove all hosts, and images that no host uses.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def down(context: click.Context, names: tuple[str, ...], images: bool, everything: bool, as_json: bool) -> None:
    """Remove the hosts NAMES, or all hosts of this project with network, keys and inventory."""
    if names and everything:
        raise click.UsageError("NAMES and --all exclude each other")
    removed = _sandbox(context).down(names, images=images or everything)
    echo(json.dumps({"removed": removed}) if as_json else "".join(f"{name}\n" for name in removed), nl=as_json)


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_hosts(context: click.Context, as_json: bool) -> None:
    """List the hosts of this project."""
    _show(_sandbox(context).hosts(), as_json=as_json)


@command.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec(context: click.Context, name: str, words: tuple[str, ...]) -> None:  # noqa: A001 - the command's name
    """Run a command as root on host NAME and exit with its exit code."""
    sandbox = _sandbox(context)
    sys.exit(sandbox.call(sandbox.host(name), *words))


@command.command()
@click.argument("name", default="")
@click.pass_context
def url(context: click.Context, name: str) -> None:
    """Print the libpq URL of the database on NAME (default: the first database host)."""
    sandbox = _sandbox(context)
    echo(sandbox.url(sandbox.host(name)))
