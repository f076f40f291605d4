"""`provision backup`: take, verify, restore-test and monitor backups, on the database host as root or postgres."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from provision import system
from provision.cli._echo import echo
from provision.cli._progress import working
from provision.host.backup import drill as drills
from provision.host.backup import dump, key, primary, requeue, shared, show, status, take
from provision.host.cluster.patroni import PRIMARY_ROLES
from provision.plan import load, schema

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
repository = click.option("--repository", type=int, default=0, help="Number of the repository [default: each].")


@click.group("backup")
@click.pass_context
def command(context: click.Context) -> None:
    """Take, verify, restore-test and monitor backups."""
    if context.invoked_subcommand != "key":  # makes a folder as root before it becomes postgres
        system.become()


@command.command("take")
@click.option(
    "--type",
    "kind",
    type=click.Choice([*take.KINDS, "logical"]),
    default="full",
    show_default=True,
    help="Kind of backup.",
)
@repository
@as_json
def take_command(kind: str, repository: int, as_json: bool) -> None:
    """Take a backup now; on a replica of a cluster, do nothing."""
    plan = load.load()
    if _skipped(plan, as_json):
        return
    with working(f"taking a {kind} backup") as narrate:
        result = dump.take(plan) if kind == "logical" else take.physical(plan, kind, repository, narrate=narrate)
    _print(result, as_json, show.taken)


@command.command("prepare")
@click.option("--take-over", default="", help="Continue this stanza although it holds backups of another cluster.")
@as_json
def prepare_command(take_over: str, as_json: bool) -> None:
    """Create or upgrade the stanza and check that WAL is archived; on a replica of a cluster, do nothing."""
    plan = load.load()
    if not _skipped(plan, as_json):
        with working("preparing the stanza"):
            result = take.prepare(plan, take_over)
        _print(result, as_json, show.prepared)


@command.command("status")
@click.option("--record", is_flag=True, help="Keep the result in /var/lib/provision/backup.json.")
@as_json
def status_command(record: bool, as_json: bool) -> None:
    """Show backup sets, ages, WAL and the last restore test; exit 3 if there are alarms."""
    with working("reading the repository"):
        seen = status.look(load.load())
    if record:
        status.keep(seen)
    _print(seen, as_json, show.status)
    status.alarm(seen)


@command.command("verify")
@repository
@as_json
def verify_command(repository: int, as_json: bool) -> None:
    """Read every file of repositories and dumps and compare checksums; exit 3 if any is damaged."""
    with working("verifying backups") as narrate:
        seen = status.verify(load.load(), repository, narrate=narrate)
    _print(seen, as_json, show.verified)
    status.alarm(seen)


@command.command("drill")
@click.option("--set", "label", default="", help="Set to restore [default: the newest with reference counts].")
@click.option(
    "--type", "kind", type=click.Choice(["physical", "logical"]), help="Test only the backup set or only the dump."
)
@repository
@as_json
def drill_command(label: str, kind: str | None, repository: int, as_json: bool) -> None:
    """Run a restore test: restore the newest backup and dump into scratch clusters, compare, clean up."""
    if not label and not kind and _skipped(load.load(), as_json):
        return
    with working("preparing the restore test") as narrate:
        result = drills.run(load.load(), label, kind or "", repository, narrate=narrate)
    _print(result, as_json, show.drilled)


@command.command("key")
@as_json
def key_command(as_json: bool) -> None:
    """Create this host's SSH key if it is missing; print the public key and pgBackRest's version."""
    made = key.make(load.load().backup.stanza)
    version = system.run("pgbackrest", "version").stdout.strip()
    _print({**asdict(made), "version": version}, as_json, lambda result: [result["public_key"]])


@command.command("requeue")
@click.argument("event", nargs=-1)
@as_json
def requeue_command(event: tuple[str, ...], as_json: bool) -> None:
    """Archive the WAL that a lost primary had not archived.

    Patroni calls it with EVENT: action, role and cluster; nothing is done for another role than primary.
    """
    plan = load.load()
    ours = not event or event[1:2] in [(role,) for role in PRIMARY_ROLES]
    names = requeue.run(plan) if plan.backup.physical and ours else []
    facts = {"changed": bool(names), "segments": names}
    _print(facts, as_json, lambda _facts: [f"{name} waits for the archiver" for name in names] or ["no change"])


def _skipped(plan: schema.Plan, as_json: bool) -> bool:
    """Say that the primary does it, on a replica of a cluster."""
    if not primary.replica(plan):
        return False
    shared.sync(plan)
    echo(json.dumps({"changed": False, "skipped": primary.SKIPPED}) if as_json else primary.SKIPPED)
    return True


def _print(result: dict[str, Any], as_json: bool, human: Any) -> None:
    echo(json.dumps(result, default=str) if as_json else "\n".join(human(result)))
