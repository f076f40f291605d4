"""Shared by all commands of `provision migrate`: options, progress on stderr, signals, JSON. Prints."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from provision import system
from provision.cli._database import migration_database_option
from provision.cli._echo import echo
from provision.cli._process import noting
from provision.cli._progress import Line
from provision.errors import ConfirmationError, ProvisionError, UsageError
from provision.host.migrate import report
from provision.host.migrate.files import Problem
from provision.host.migrate.narrate import Narrator
from provision.host.migrate.settings import LOCK_TIMEOUT_S, WAIT_S, Settings, from_url, seconds
from provision.host.migrate.steps import Step
from provision.host.tenants import catalog, login
from provision.plan import load
from provision.quoting import visible

T = TypeVar("T")

SPEAK_AT_S = (10.0, 30.0, 60.0)
"""Seconds after which a running step is reported if stderr is no terminal; the last interval repeats."""


class Call:
    """One call of a command: its settings, its output format, and the received signal, if any."""

    def __init__(self, settings: Settings, as_json: bool) -> None:
        """Collect progress, which the JSON of a failed call reports too."""
        self.settings, self.as_json, self.signal = settings, as_json, ""
        self.schema: str | None = None  # as --schema named it
        self.narrator = Stderr(as_json)

    def result(self, values: dict[str, Any], text: str) -> None:
        """Print the result: JSON or text."""
        if self.as_json:
            values["warnings"] = [report.problem(problem) for problem in self.narrator.problems]
        echo(json.dumps(values, indent=2) if self.as_json else text)

    def confirming(self, given: str, action: Callable[[str], T]) -> T:
        """Run a destructive action, confirmed by the given name or, on a terminal, by the typed name."""
        try:
            return action(given)
        except ConfirmationError as error:
            if given or self.as_json or not sys.stdin.isatty():
                raise
            echo(f"{error.what} ({error.where})", err=True)
            typed = click.prompt("Type the database's name to continue", default="", show_default=False, err=True)
            return action(typed.strip())

    def note(self, name: str) -> None:
        """Record a signal, so that the run can stop with the database in a known state."""
        self.signal = name


class Stderr(Narrator):
    """Progress on stderr: one line per step, and a line about the running one, updated in place on a terminal."""

    def __init__(self, as_json: bool) -> None:
        """Print no steps on stdout if quiet."""
        self.quiet = as_json
        self.steps: list[tuple[Step, float]] = []
        self.problems: list[Problem] = []
        self._running = Line()
        self._spoken = 0.0

    def _line(self, text: str) -> None:
        self._running.clear()
        echo(visible(text), err=True)

    def warn(self, problem: Problem) -> None:
        """Print a warning."""
        self.problems.append(problem)
        advice = f" ({problem.fix})" if problem.fix else ""
        self._line(f"warning: {problem.file} {problem.seen}{advice}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._line(text)

    def running(self, label: str, seconds: float, detail: str) -> None:
        """Show the running step, its duration and its progress."""
        text = visible(f"{label}: {seconds:.0f} s{', ' if detail else ''}{detail}")
        if sys.stderr.isatty():
            if seconds >= 1:
                self._running.show(text)
            return
        self._spoken = 0.0 if seconds < self._spoken else self._spoken
        due = next((at for at in SPEAK_AT_S if at > self._spoken), self._spoken + SPEAK_AT_S[-1])
        if seconds >= due:
            self._spoken = due
            echo(text, err=True)

    def done(self, step: Step, seconds: float) -> None:
        """Print a finished step on stdout, as part of the result."""
        self.steps.append((step, seconds))
        self._running.clear()
        if not self.quiet:
            verb = "applied" if step.direction == "up" else "reverted"
            echo(visible(f"{verb} {step.label} in {seconds:.3f} s"))


destroys = click.option(
    "--yes-destroy", default="", metavar="DATABASE", help="Confirm the destruction of data in this database."
)
"""Needed by `drop`, and on a guarded database by `down` and by `goto` a lower version."""

without_backup = click.option(
    "--without-backup", is_flag=True, help="Allow it on a guarded database without a recent restore-tested backup."
)
"""A guarded database also needs a backup that a recent restore test restored."""


with_extensions = click.option(
    "--extension",
    "extensions",
    multiple=True,
    default=("vector", "uuid-ossp"),
    show_default=True,
    help="Extension of the scratch database, if available; repeatable.",
)


def host_path(given: Path) -> Path:
    """Become postgres and return the path of the migrations: as given, or the host's own directory."""
    context = click.get_current_context()
    if context.get_parameter_source("url") is ParameterSource.COMMANDLINE:
        raise UsageError("--database and tenants exclude each other", allowed="tenants of this host's main database")
    if context.params.get("tenant") and context.params.get("all_tenants"):
        raise UsageError("--tenant and --all-tenants exclude each other", allowed="one of them")
    plan = load.load()
    own = context.get_parameter_source("path") is ParameterSource.DEFAULT
    path = Path(plan.migrations.directory) if own else given.absolute()
    system.become()
    return path


@contextmanager
def as_tenant(call: Call, name: str) -> Iterator[None]:
    """Act as a tenant of this host within a `with` block; without a name, use the given database."""
    if not name:
        yield
        return
    plan = load.load()
    with login.superuser(plan) as session:
        catalog.find(session, name)
        with login.acting(plan, session, name) as acting:
            call.settings = replace(call.settings, url=acting.url)
            yield


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the common options to a command, which is called with a Call and its own arguments."""

    @migration_database_option
    @click.option("--tenant", default="", help="Tenant of this host's database, instead of --database.")
    @click.option("--path", type=click.Path(path_type=Path), default=Path("migrations"), show_default=True,
                  help="Directory of the migration files.")  # fmt: skip
    @click.option("--table", default=None, help="Version table [schema_migrations].")
    @click.option("--schema", default=None, help="Schema of the version table [the first of search_path].")
    @click.option(
        "--lock-timeout", help=f"Longest wait for a table lock: 5, 500ms, 0 for no limit [{LOCK_TIMEOUT_S:.0f}s]."
    )
    @click.option("--wait", help=f"Longest wait for another runner [--lock-timeout, or {WAIT_S:.0f}s].")
    @click.option("--statement-timeout", help="Cancel a statement after this time [no limit].")
    @click.option(
        "--retries", type=click.IntRange(0), default=3, show_default=True, help="Retries after a lock timeout."
    )
    @click.option("--compatible", is_flag=True, help="Only warn where golang-migrate would continue.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
    @functools.wraps(function)
    def wrapped(
        url: str,
        path: Path,
        table: str | None,
        schema: str | None,
        lock_timeout: str | None,
        wait: str | None,
        statement_timeout: str | None,
        retries: int,
        compatible: bool,
        as_json: bool,
        tenant: str,
        **own: Any,
    ) -> None:
        started = time.monotonic()
        tenants = bool(tenant or own.get("all_tenants"))
        path = host_path(path) if tenants else path
        unguarded = bool(own.pop("without_backup", False))
        call = Call(Settings(url, path), as_json)
        try:
            settings = from_url(
                url, Settings(url, path, retries=retries, compatible=compatible, without_backup=unguarded)
            )
            if lock_timeout is not None:
                settings = replace(settings, lock_timeout_s=seconds(lock_timeout), wait_s=seconds(lock_timeout))
            if wait is not None:
                settings = replace(settings, wait_s=seconds(wait))
            if statement_timeout is not None:
                settings = replace(settings, statement_timeout_s=seconds(statement_timeout))
            call.settings = replace(settings, table=table or settings.table, schema=schema or settings.schema)
            call.schema = schema
            with noting(call.note), as_tenant(call, tenant):
                function(call, **own)
        except ProvisionError as error:
            if as_json:
                answers = ("what", "where", "seen", "allowed", "run")
                call.result(
                    {
                        "error": {name: visible(getattr(error, name)) for name in answers},
                        "applied": report.steps(call.narrator.steps, "up"),
                        "reverted": report.steps(call.narrator.steps, "down"),
                        "seconds": round(time.monotonic() - started, 3),
                    },
                    "",
                )
            raise

    return wrapped
