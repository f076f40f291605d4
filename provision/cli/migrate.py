"""`provision migrate`: the commands of golang-migrate on its version table, with additional checks.

Exit codes: 0 done, or nothing to do; 1 failed or refused; 2 usage; 3 `status` or `plan` found pending or faulty
migrations.
"""

from __future__ import annotations

import sys

import click

from provision.cli._migrate import Call, destroys, options, with_extensions, without_backup
from provision.cli._migrate_majors import Two, differences, lines, majors
from provision.cli._migrate_tenants import status_all, up_all
from provision.database import is_standby
from provision.errors import UsageError
from provision.host.migrate import drift
from provision.host.migrate import report as shown
from provision.host.migrate.create import create as create_files
from provision.host.migrate.files import LARGEST_VERSION, NONE
from provision.host.migrate.plan import make as make_plan
from provision.host.migrate.plan import text as plan_text
from provision.host.migrate.plan import values as plan_values
from provision.host.migrate.runner import Report, Runner
from provision.host.migrate.settings import from_url, seconds
from provision.host.migrate.status import look
from provision.host.migrate.status import version as read_version
from provision.host.tenants.migrations import JOBS


@click.group("migrate")
def command() -> None:
    """Apply, revert and inspect SQL migrations."""


@command.command()
@click.argument("limit", type=click.IntRange(0), required=False, metavar="[N]")
@click.option("--skip-standby", is_flag=True, help="Do nothing on a replica of a cluster.")
@click.option("--all-tenants", is_flag=True, help="Migrate every tenant of this host's database.")
@click.option(
    "--jobs", type=click.IntRange(1, 32), default=JOBS, show_default=True, help="Tenants to migrate at the same time."
)
@click.option(
    "--tenant-limit", default="1h", show_default=True, help="Time limit for each tenant with --all-tenants; 0 for none."
)
@options
def up(call: Call, limit: int | None, skip_standby: bool, all_tenants: bool, jobs: int, tenant_limit: str) -> None:
    """Apply all pending migrations, or the next N.

    With --all-tenants, a tenant that fails does not stop the others and is listed; a repeated run continues.
    """
    if all_tenants:
        if limit is not None:
            raise UsageError("N and --all-tenants exclude each other", seen=f"up {limit} --all-tenants", allowed="one")
        up_all(call, jobs, seconds(tenant_limit), skip_standby=skip_standby)
        return
    if skip_standby and is_standby(call.settings.url):
        call.result({"command": "up", "changed": False, "applied": []}, "a replica: nothing to do")
        return
    _report(call, "up", _runner(call).up(limit))


@command.command()
@click.argument("limit", type=click.IntRange(0), required=False, metavar="N")
@click.option("--all", "-all", "everything", is_flag=True, help="Revert all migrations.")
@destroys
@without_backup
@options
def down(call: Call, limit: int | None, everything: bool, yes_destroy: str) -> None:
    """Revert the last N migrations, or all."""
    if everything == (limit is not None):
        raise UsageError(
            "number of migrations missing", seen="down", allowed="down N, or down --all", run="provision migrate down 1"
        )
    _report(call, "down", call.confirming(yes_destroy, lambda confirmed: _runner(call, confirmed).down(limit)))


@command.command()
@click.argument("target", type=click.IntRange(0, LARGEST_VERSION), metavar="V")
@destroys
@without_backup
@options
def goto(call: Call, target: int, yes_destroy: str) -> None:
    """Migrate up or down to version V."""
    _report(call, "goto", call.confirming(yes_destroy, lambda confirmed: _runner(call, confirmed).goto(target)))


@command.command(context_settings={"ignore_unknown_options": True})
@click.argument("target", type=click.IntRange(NONE, LARGEST_VERSION), metavar="V")
@options
def force(call: Call, target: int) -> None:
    """Record version V as clean without running anything (-1: nothing applied)."""
    _report(call, "force", _runner(call).force(target))


@command.command()
@destroys
@without_backup
@options
def drop(call: Call, yes_destroy: str) -> None:
    """Drop every table of the schema (--schema, else the first of search_path), and the migration history."""
    _report(call, "drop", call.confirming(yes_destroy, lambda confirmed: _runner(call, confirmed).drop(call.schema)))


@command.command("version")
@options
def show_version(call: Call) -> None:
    """Print the current version."""
    state = read_version(call.settings)
    call.result(shown.state(state), str(state))


@command.command()
@click.option("--all-tenants", is_flag=True, help="Show the version of every tenant of this host's database.")
@options
def status(call: Call, all_tenants: bool) -> None:
    """Show every migration and its state; exit 3 if any is pending or faulty."""
    if all_tenants:
        status_all(call)
        return
    situation = look(call.settings)
    call.result(shown.situation(situation), shown.table(situation))
    sys.exit(0 if situation.settled else 3)


@command.command()
@click.option("--distributed", is_flag=True, help="Name statements that Citus refuses on a distributed schema.")
@options
def plan(call: Call, distributed: bool) -> None:
    """Show the statements that `up` would run, with their locks; exit 3 if any is pending."""
    made = make_plan(call.settings, distributed=distributed)
    refused = drift.stopping(made.situation.problems, compatible=call.settings.compatible)
    call.result(plan_values(made), plan_text(made))
    sys.exit(1 if refused else 3 if made.files else 0)


@command.command()
@click.argument("name")
@options
def create(call: Call, name: str) -> None:
    """Create the up and down files of a new migration."""
    paths = [str(path) for path in create_files(call.settings.path, name)]
    call.result({"created": paths}, "\n".join(paths))


@command.command()
@click.option("--scratch-url", default="", help="libpq URL whose role can create databases and extensions.")
@majors
@with_extensions
@options
def verify(call: Call, scratch_url: str, extensions: tuple[str, ...], two: Two | None) -> None:
    """Run all migrations up, down and up again on a scratch database; exit 1 if the schemas differ.

    With --from and --to, do so on scratch servers of two installed majors, and compare their schemas.
    """
    from provision.host.migrate.verify import verify as verify_files

    call.narrator.quiet = True
    if two:
        two.verify(call, extensions)
        return
    found = verify_files(
        from_url(scratch_url, call.settings),
        extensions,
        lambda settings, name: Runner(settings, call.narrator, lambda: call.signal, name),
    )
    shown = lines(found.differences)
    values = {
        "steps": len(found.done),
        "seconds": round(sum(took for _, took in found.done), 3),
        "differences": differences(found.differences),
    }
    call.result(values, "\n".join([*shown, f"{len(found.done)} steps up, down and up again: {len(shown)} differences"]))
    sys.exit(1 if found.differences else 0)


def _runner(call: Call, confirmed: str = "") -> Runner:
    return Runner(call.settings, call.narrator, lambda: call.signal, confirmed)


def _report(call: Call, name: str, report: Report) -> None:
    changed = bool(report.done) or name in ("force", "drop")
    call.result(
        {
            "command": name,
            "database": report.database,
            "before": shown.state(report.before),
            **shown.state(report.after),
            "changed": changed,
            "applied": shown.steps(report.done, "up"),
            "reverted": shown.steps(report.done, "down"),
            "adopted": report.adopted,
        },
        f"version {report.after}" if changed else "no change",
    )
