"""`provision cluster`: the cluster of this host, as root or postgres; only a member changes it."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict

import click

from provision.cli._echo import echo
from provision.errors import ConfirmationError, HostError
from provision.host.cluster import access, balancer, life, pooler, primary
from provision.host.cluster import switchover as switching
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.follow import Follower
from provision.host.cluster.patroni import Patroni
from provision.host.pooler import console
from provision.plan import load

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
wait = click.option("--wait", default=10.0, show_default=True, help="Seconds to wait until running transactions end.")
force = click.option(
    "--force",
    is_flag=True,
    help="Terminate transactions that exceed --wait; continue without poolers that do not answer.",
)


@click.group("cluster")
def command() -> None:
    """Inspect and control the cluster of this host."""


@command.command()
@as_json
def status(as_json: bool) -> None:
    """Show members, primary, lag, poolers and problems. Exit code 3 if a problem is found."""
    found = life.status(*_clients())
    echo(json.dumps(asdict(found)) if as_json else "\n".join(life.lines(found)))
    if found.problems:
        raise click.exceptions.Exit(3)


@command.command()
@click.option("--to", default="", help="Member to promote [default: the replica with the least lag].")
@wait
@force
@as_json
def switchover(to: str, wait: float, force: bool, as_json: bool) -> None:
    """Promote another member while clients of the poolers wait."""
    patroni, dcs = _clients(control=True)
    writable = primary.checker(load.load())
    done = switching.switchover(patroni, dcs, writable, _narrate, to=to, wait_s=wait, force=force)
    facts = {"changed": True, **asdict(done)}
    echo(json.dumps(facts) if as_json else f"{done.source} -> {done.target}; clients waited {done.paused_s:.1f} s")
    if not done.streaming:
        raise HostError(
            f"{done.source} does not stream from {done.target} yet",
            seen=f"after {switching.STREAM_S} s",
            run=f"provision cluster status; if it stays so: provision cluster reinitialise {done.source}",
        )


@command.command()
@click.option("--all", "everything", is_flag=True, help="Restart every member, not only those with a pending restart.")
@click.option("--only", default="", metavar="NAME", help="Restart this member, whether a restart is pending or not.")
@wait
@force
@as_json
def restart(everything: bool, only: str, wait: float, force: bool, as_json: bool) -> None:
    """Restart the servers with a pending restart: replicas first, then the primary while clients wait."""
    patroni, dcs = _clients(control=True)
    writable = primary.checker(load.load())
    names = life.restart(patroni, dcs, writable, _narrate, everything=everything, only=only, wait_s=wait, force=force)
    shown = f"restarted {', '.join(names)}" if names else "no pending restart"
    echo(json.dumps({"changed": bool(names), "restarted": names}) if as_json else shown)


@command.command()
@click.argument("name")
@click.option("--yes-destroy", default="", help="The member's name, to confirm without a prompt.")
def reinitialise(name: str, yes_destroy: str) -> None:
    """Delete the data directory of the replica NAME and clone it again."""
    patroni, _ = _clients(control=True)
    member = life.replica(patroni, name)
    if (
        yes_destroy != name
        and click.prompt(f"This deletes the data directory of {name}. Type its name", err=True) != name
    ):
        raise ConfirmationError("not confirmed; nothing was changed", name=name)
    life.reinitialise(patroni, member, _narrate)
    echo(f"{name} streams")


@command.command()
def pause() -> None:
    """Turn off automatic failover, for maintenance. The servers go on; `resume` turns it on again."""
    changed = life.set_pause(_clients(control=True)[0], True)
    echo("automatic failover is off" if changed else "automatic failover was off already")


@command.command()
def resume() -> None:
    """Turn on automatic failover."""
    api, dcs = _clients(control=True)
    if moving := life.upgrading(dcs, api.access.cluster.scope):
        raise HostError(
            "automatic failover stays off during a major upgrade: a replica would take over with the old data",
            where=api.access.cluster.scope, seen=moving, run="provision upgrade status, on that member",
        )  # fmt: skip
    changed = life.set_pause(api, False)
    echo("automatic failover is on" if changed else "automatic failover was already on")


@command.command()
@as_json
def route(as_json: bool) -> None:
    """Write the pooler's target for the current primary, if it differs. For a pooler that does not run yet."""
    changed, target = life.route(*_clients(), _pooler())
    echo(
        json.dumps({"changed": changed, "target": target}) if as_json else f"{target}{'' if changed else ': no change'}"
    )


@command.command()
@click.option("--check", is_flag=True, help="Show what is due; change nothing.")
@as_json
def balance(check: bool, as_json: bool) -> None:
    """Start HAProxy, reload it if its files changed, or stop it if the inventory no longer has it."""
    actions = balancer.apply(load.load(), check=check)
    facts = {"changed": bool(actions), "actions": actions}
    echo(json.dumps(facts) if as_json else ", ".join(actions) or "no change")


@command.command()
def follow() -> None:
    """Keep the pooler of this host on the primary (provision-follow.service)."""
    plan = load.load()
    patroni, dcs = _clients()
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopped.append(received))
    follower = Follower(
        cluster=access.required(plan),
        name=plan.name,
        dcs=dcs,
        patroni=patroni,
        pooler=_pooler(),
        writable=primary.checker(plan),
        checkpoint=lambda: primary.checkpoint(plan),
        stream_from=lambda member: primary.stream_from(plan, member),
        narrate=_narrate,
    )
    follower.run(lambda: bool(stopped))


def _clients(*, control: bool = False) -> tuple[Patroni, Dcs]:
    """Return clients of Patroni and etcd; `control` requires a member."""
    reach = access.controlling(load.load()) if control else access.of(load.load())
    return Patroni(reach), Dcs.of(reach)


def _pooler() -> pooler.Pooler:
    place = console.Place.read()
    if place is None:
        raise HostError("this host has no pooler", run=load.load().site("pgbouncer"))
    return pooler.Pooler(place, pooler.TEMPLATE, pooler.FILE)


def _narrate(text: str) -> None:
    echo(text, err=True)
