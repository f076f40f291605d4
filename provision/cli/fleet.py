"""`provision fleet`: groups of servers that share the tenants. On a host of the fleet, as root or postgres."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from provision import system
from provision.cli._echo import echo
from provision.cli._process import noting
from provision.cli._progress import working
from provision.errors import UsageError
from provision.host.backup import show as sizes
from provision.host.fleet import apply as converging
from provision.host.fleet import leave, nodes, points
from provision.host.fleet import move as moving
from provision.plan import load
from provision.plan.cluster import COORDINATOR
from provision.plan.schema import Plan

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
group_argument = click.argument("group", type=click.IntRange(1))


@click.group("fleet")
def command() -> None:
    """Manage a fleet: groups of servers, joined by Citus, that share the tenants."""


def _plan() -> Plan:
    plan = load.load()
    nodes.fleet_of(plan)
    system.become()
    return plan


@command.command()
@json_option
def status(as_json: bool) -> None:
    """Show the groups and their tenants.

    Exits with 3 if a group is missing or inactive.
    """
    plan = _plan()
    with nodes.coordinator(plan) as session:
        groups, places, silent = nodes.groups(session), nodes.places(session), nodes.silent(session)
    missing = sorted(set(nodes.fleet_of(plan).groups) - {each.number for each in groups if each.active})
    if as_json:
        values = {
            "fleet": nodes.fleet_of(plan).name,
            "groups": [asdict(each) for each in groups],
            "tenants": [asdict(each) for each in places],
            "missing": missing,
            "silent": silent,
        }
        echo(json.dumps(values, indent=2))
    else:
        echo("\n".join(_lines(groups, places, missing, silent)))
    if missing or silent:
        raise SystemExit(3)


def _lines(groups: list[nodes.Group], places: list[nodes.Place], missing: list[int], silent: list[int]) -> list[str]:
    rows = [("group", "primary", "state", "tenants", "size")]
    for each in groups:
        held = [place for place in places if place.group == each.number]
        state = "inactive" if not each.active else "draining" if each.draining else "active"
        role = "coordinator" if each.number == COORDINATOR else str(each.number)
        rows.append(
            (role, f"{each.host}:{each.port}", state, str(len(held)), sizes.size(sum(place.size for place in held)))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    problems = [f"PROBLEM group {number} is not registered or not active" for number in missing]
    return [*table, *problems, *(f"PROBLEM group {number} does not answer" for number in silent)]


@command.command()
@click.option("--check", is_flag=True, help="Change nothing; report what would be done.")
@json_option
def apply(check: bool, as_json: bool) -> None:
    """Wait for all groups, then distribute migrated tenants; site.yml runs it."""
    plan = _plan()
    if converging.idle(plan):
        echo(json.dumps({"changed": False}) if as_json else "nothing to do: this host is not the primary of group 0")
        return
    if check:
        with nodes.coordinator(plan) as session:
            pending = converging.pending(session)
        text = "\n".join(f"distribute tenant {each}" for each in pending) or "no change"
        echo(json.dumps({"changed": bool(pending), "pending": pending}) if as_json else text)
        return
    done = converging.apply(plan, lambda text: echo(text, err=True))
    if as_json:
        echo(json.dumps({"changed": bool(done.distributed), **asdict(done)}))
    else:
        echo("\n".join([*(f"distributed tenant {each}" for each in done.distributed), *done.warnings]) or "no change")


@command.command()
@click.option(
    "--by",
    type=click.Choice(moving.BY),
    default="size",
    show_default=True,
    help="Bytes, or statements of the last one to two minutes.",
)
@click.option("--yes", is_flag=True, help="Make the moves; without it, only print them.")
@json_option
def rebalance(by: str, yes: bool, as_json: bool) -> None:
    """Balance the groups by moving tenants online, one at a time.

    Prints the plan first. After an interruption, the same command continues.
    """
    _rebalance(by, yes=yes, as_json=as_json)


@command.command()
@group_argument
@click.option("--undo", is_flag=True, help="Accept tenants in the group again.")
@json_option
def drain(group: int, undo: bool, as_json: bool) -> None:
    """Move all tenants off a group, one at a time, starting now; new tenants go to other groups."""
    plan = _plan()
    with nodes.coordinator(plan) as session:
        if not undo:
            nodes.refuse_silent(session)
            moving.refuse_last(nodes.groups(session), group)
        moving.set_draining(session, group, not undo)
    if undo:
        echo(json.dumps({"group": group, "draining": False}) if as_json else f"group {group} receives tenants again")
        return
    _rebalance("size", yes=True, as_json=as_json, only=group)


@command.command()
@group_argument
@json_option
def remove(group: int, as_json: bool) -> None:
    """Remove an empty group, once its hosts have left the inventory and stopped."""
    plan = _plan()
    if group in nodes.fleet_of(plan).groups:
        raise UsageError(
            f"group {group} is in the inventory",
            seen=", ".join(each.name for each in nodes.fleet_of(plan).nodes if each.group == group),
            allowed="a group without hosts in the inventory",
            run=f"remove them from the inventory, then {plan.site()}",
        )
    with nodes.coordinator(plan) as session:
        moving.refuse_filled(session, group)
        leave.forget(plan, group)
        removed = moving.remove(session, group)
    text = f"group {group} is removed" if removed else f"group {group} is not registered"
    echo(json.dumps({"group": group, "changed": removed}) if as_json else text)


@command.command()
@click.argument("name")
@json_option
def point(name: str, as_json: bool) -> None:
    """Create a restore point in every group; its name is NAME with the time."""
    plan = _plan()
    with nodes.coordinator(plan) as session:
        full, segments = points.make(plan, session, name)
    if as_json:
        echo(json.dumps({"name": full, "segments": segments}, indent=2))
    else:
        echo(f"restore point {full} in every group: restore.yml -e restore_target=name:{full}")


def _rebalance(by: str, *, yes: bool, as_json: bool, only: int = COORDINATOR) -> None:
    plan, signals = _plan(), list[str]()
    with nodes.coordinator(plan) as session:
        nodes.refuse_silent(session)
        places, groups = nodes.places(session), nodes.groups(session)
        weights = nodes.load(session) if by == "load" else {each.tenant: each.size for each in places}
        moves = moving.plan(places, weights, groups, only)
        done, failed = list[moving.Move](), dict[str, str]()
        if yes:
            with noting(signals.append), working("moving") as narrate:
                done, failed = moving.run(session, moves, lambda: bool(signals), narrate)
    if as_json:
        values = {"moves": [asdict(each) for each in moves], "done": [asdict(each) for each in done], "failed": failed}
        echo(json.dumps(values, indent=2))
    else:
        failures = [f"tenant {name} was not moved: {why}" for name, why in failed.items()]
        echo("\n".join([*failures, *_moves(moves, done, yes=yes)]))
    if yes and len(done) < len(moves):
        raise SystemExit(1)


def _moves(moves: list[moving.Move], done: list[moving.Move], *, yes: bool) -> list[str]:
    lines = [f"tenant {each.tenant}: group {each.source} -> {each.target}" for each in (done if yes else moves)]
    if not moves:
        return ["no tenant needs to move"]
    rest = f"{len(done)} of {len(moves)} moves made" if yes else "to make these moves, repeat the command with --yes"
    return [*lines, rest]
