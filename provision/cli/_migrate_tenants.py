"""`provision migrate up|status --all-tenants`: progress on stderr, one line per tenant, exit codes. Prints."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from provision.cli._echo import echo
from provision.database import is_standby
from provision.errors import MigrationError, some
from provision.host.tenants import login, migrations
from provision.plan import load
from provision.quoting import visible

if TYPE_CHECKING:
    from provision.cli._migrate import Call

SHOWN = 20
"""Failed tenants that the error names; all are in the result."""


def up_all(call: Call, jobs: int, limit_s: float, *, skip_standby: bool) -> None:
    """Migrate every tenant and report each. Raises MigrationError that names those that failed."""
    plan = load.load()
    if skip_standby and is_standby(plan.server.url(plan.access.database)):
        call.result({"command": "up", "changed": False, "tenants": []}, "a replica: nothing to do")
        return
    shown = 0

    def progress(result: migrations.Result, done: int, every: int) -> None:
        nonlocal shown
        text = f"{done} of {every} tenants, {result.name} {result.outcome}"
        text += f": {visible(result.why)}" if result.why and not sys.stderr.isatty() else ""
        if sys.stderr.isatty():
            width = 30
            bar = "#" * (width * done // every)
            text = f"[{bar.ljust(width)}] {text}"
            click.echo("\r" + text.ljust(shown), nl=done == every, err=True)
            shown = len(text)
        elif result.outcome == "failed" or done == every or done % 50 == 0:
            echo(text, err=True)

    found = migrations.up(
        plan, call.settings, jobs=jobs, limit_s=limit_s, interrupted=lambda: call.signal, progress=progress
    )
    bad = [each for each in found if each.outcome in ("failed", "not started")]
    counts = {outcome: sum(each.outcome == outcome for each in found) for outcome in ("migrated", "current")}
    values = {
        "command": "up", "changed": any(each.applied for each in found),
        "tenants": [{**asdict(each), "why": visible(each.why) or None} for each in found],
    }  # fmt: skip
    lines = [
        visible(f"{each.name}: {each.outcome}" + (f", {each.why}" if each.why else f", version {each.version}"))
        for each in found
        if each.outcome != "current"
    ]
    summary = f"{counts['migrated']} migrated, {counts['current']} current, {len(bad)} not migrated"
    call.result(values, "\n".join([*lines, summary]))
    if bad:
        if call.as_json:
            sys.exit(1)
        raise MigrationError(
            f"{len(bad)} of {len(found)} tenants were not migrated",
            where=f"database {plan.access.database}",
            seen=some([each.name for each in bad], SHOWN),
            run=f"provision migrate status --tenant {bad[0].name}; then repeat: provision migrate up --all-tenants",
        )


def status_all(call: Call) -> None:
    """Show the version of every tenant; exit 3 if one is behind, dirty or unreadable."""
    with login.superuser(load.load()) as session:
        found = migrations.versions(session, call.settings)
    values = {
        "settled": all(each.settled for each in found),
        "tenants": [
            {
                "tenant": each.name,
                "version": None if each.state is None or each.state.version < 0 else each.state.version,
                "dirty": None if each.state is None else each.state.dirty,
                "pending": list(each.pending),
                "problem": visible(each.why) or None,
            }
            for each in found
        ],
    }
    width = max([len("tenant"), *(len(each.name) for each in found)])
    lines = [f"{'tenant'.ljust(width)}  version  pending"]
    for each in found:
        dirty = " (dirty)" if each.state is not None and each.state.dirty else ""
        pending = ", ".join(map(str, each.pending)) or each.why or "none"
        lines.append(visible(f"{each.name.ljust(width)}  {migrations.shown(each.state) + dirty:<7}  {pending}"))
    call.result(values, "\n".join(lines))
    sys.exit(0 if values["settled"] else 3)
