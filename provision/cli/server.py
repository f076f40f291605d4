"""`provision server`: the PostgreSQL server of this host, as root; site.yml calls it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from provision.cli._echo import echo
from provision.cli._process import require_root
from provision.host.server import cluster, configuration, kernel
from provision.plan import load, schema

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("server")
def command() -> None:
    """Create, start and configure the PostgreSQL server of this host."""


@command.command()
@as_json
def create(as_json: bool) -> None:
    """Create the cluster with checksums, unless it exists. Move an incomplete cluster aside; never delete it."""
    changed = cluster.create(_plan(), _narrate)
    _print({"changed": changed}, ["cluster created" if changed else "no change"], as_json)


@command.command()
@click.option(
    "--restart-allowed/--no-restart-allowed",
    default=None,
    help="Allow or forbid a restart for pending settings [postgresql_restart_allowed of the plan].",
)
@as_json
def apply(restart_allowed: bool | None, as_json: bool) -> None:
    """Start or reload the server, apply kernel settings, and report pending restarts.

    The pooler is paused during a restart. Exit 1 if the server rejects a file.
    """
    plan = _plan()
    kernel_done = kernel.apply(plan) if plan.server.kernel and kernel.FILE.exists() else None
    done = configuration.apply(plan, restart_allowed, _narrate)
    lines = [word for word in ("started", "reloaded", "restarted") if getattr(done, word)] or ["no change"]
    warnings = [*configuration.warnings(done, plan), *(kernel.warnings(kernel_done) if kernel_done else ())]
    changed = done.changed or bool(kernel_done and kernel_done.changed)
    _print({"changed": changed, **asdict(done), "warnings": warnings}, [*lines, *warnings], as_json)


@command.command()
@click.option("--enable", is_flag=True, help="Enable them. The server is stopped for about a minute for each 100 GB.")
@as_json
def checksums(enable: bool, as_json: bool) -> None:
    """Show whether the data has checksums, or enable them."""
    plan = _plan()
    changed = cluster.enable_checksums(plan, _narrate) if enable else False
    warnings = [] if cluster.has_checksums(plan) else [cluster.NO_CHECKSUMS]
    _print({"changed": changed, "warnings": warnings}, warnings or ["checksums are on"], as_json)


@command.command("kernel")
@click.option("--again", is_flag=True, help="Apply the file even if the kernel already has its values.")
@as_json
def apply_kernel(again: bool, as_json: bool) -> None:
    """Apply the kernel settings for the server and count the huge pages."""
    done = kernel.apply(_plan(), again=again)
    lines = ["applied" if done.changed else "no change", f"huge pages: {done.huge_pages} of {done.expected}"]
    warnings = list(kernel.warnings(done))
    _print({**asdict(done), "warnings": warnings}, [*lines, *warnings], as_json)


def _plan() -> schema.Plan:
    """Load the plan. Raises HostError for any user but root."""
    require_root("server commands need root", "provision server ...")
    return load.load()


def _narrate(text: str) -> None:
    echo(text, err=True)


def _print(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    echo(json.dumps(facts) if as_json else "\n".join(lines))
