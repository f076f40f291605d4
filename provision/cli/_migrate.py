"""What all commands of `provision migrate` share: options, narration on stderr, signals, JSON. Prints."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

from provision.cli._database import database_option
from provision.errors import ConfirmationError, ProvisionError
from provision.host.migrate import report
from provision.host.migrate.files import Problem
from provision.host.migrate.narrate import Narrator
from provision.host.migrate.report import printable
from provision.host.migrate.settings import LOCK_TIMEOUT_S, WAIT_S, Settings, from_url, seconds
from provision.host.migrate.steps import Step

T = TypeVar("T")

SPEAK_AT_S = (10.0, 30.0, 60.0)
"""Where stderr is not a terminal: seconds after which a long step is mentioned, then every last of these."""


class Call:
    """One call of a command: its settings, where the results go, and the signal that came, if one did."""

    def __init__(self, settings: Settings, as_json: bool) -> None:
        """Collects what happens, for the JSON of a call that fails half-way too."""
        self.settings, self.as_json, self.signal = settings, as_json, ""
        self.schema: str | None = None  # as --schema named it
        self.narrator = Stderr(as_json)

    def result(self, values: dict[str, Any], text: str) -> None:
        """Print the result: JSON or text."""
        if self.as_json:
            values["warnings"] = [report.problem(problem) for problem in self.narrator.problems]
        click.echo(json.dumps(values, indent=2) if self.as_json else text)

    def confirming(self, given: str, action: Callable[[str], T]) -> T:
        """Do what may destroy data: with the name that was given, or, on a terminal, the name that is typed."""
        try:
            return action(given)
        except ConfirmationError as error:
            if given or self.as_json or not sys.stdin.isatty():
                raise
            click.echo(f"{error.what} ({error.where})", err=True)
            typed = click.prompt("Type the database's name to go on", default="", show_default=False, err=True)
            return action(typed.strip())

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM instead of dying of them: the run ends by itself, the database in a known state."""

        def note(number: int, _frame: FrameType | None) -> None:
            self.signal = signal.Signals(number).name

        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Stderr(Narrator):
    """Narrates on stderr: one line per step, and what is running, rewritten in place on a terminal."""

    def __init__(self, as_json: bool) -> None:
        """When quiet, steps are not printed on stdout."""
        self.quiet = as_json
        self.steps: list[tuple[Step, float]] = []
        self.problems: list[Problem] = []
        self._shown = 0
        self._spoken = 0.0

    def _line(self, text: str) -> None:
        if self._shown:
            click.echo("\r" + " " * self._shown + "\r", nl=False, err=True)
            self._shown = 0
        click.echo(printable(text), err=True)

    def warn(self, problem: Problem) -> None:
        """Print a warning."""
        self.problems.append(problem)
        advice = f" ({problem.fix})" if problem.fix else ""
        self._line(f"warning: {problem.file} {problem.seen}{advice}")

    def note(self, text: str) -> None:
        """Print a line."""
        self._line(text)

    def running(self, label: str, seconds: float, detail: str) -> None:
        """Show what runs, for how long, and how far it is."""
        text = printable(f"{label}: {seconds:.0f} s{', ' if detail else ''}{detail}")
        if sys.stderr.isatty():
            if seconds >= 1:
                text = text[: shutil.get_terminal_size().columns - 1]
                click.echo("\r" + text.ljust(self._shown), nl=False, err=True)
                self._shown = len(text)
            return
        self._spoken = 0.0 if seconds < self._spoken else self._spoken
        due = next((at for at in SPEAK_AT_S if at > self._spoken), self._spoken + SPEAK_AT_S[-1])
        if seconds >= due:
            self._spoken = due
            click.echo(text, err=True)

    def done(self, step: Step, seconds: float) -> None:
        """Print a finished step; it is part of the result, so it goes to stdout."""
        self.steps.append((step, seconds))
        if self._shown:
            click.echo("\r" + " " * self._shown + "\r", nl=False, err=True)
            self._shown = 0
        if not self.quiet:
            verb = "applied" if step.direction == "up" else "reverted"
            click.echo(printable(f"{verb} {step.label} in {seconds:.3f} s"))


destroys = click.option(
    "--yes-destroy", default="", metavar="DATABASE", help="Confirm, by its name, that its data may be destroyed."
)
"""The option of commands that need it: `drop` always, `down` and `goto` a lower version on a prod database."""

without_backup = click.option(
    "--without-backup", is_flag=True, help="On a prod database: go on although no fresh, proved backup is known here."
)
"""Its companion: on a prod database a backup that a drill has restored must be known."""


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options; it is called with a Call and its own arguments."""

    @database_option
    @click.option("--path", type=click.Path(path_type=Path), default=Path("migrations"), show_default=True)
    @click.option("--table", default=None, help="Version table [schema_migrations].")
    @click.option("--schema", default=None, help="Its schema [the first of search_path].")
    @click.option("--lock-timeout", help=f"Wait for a lock: 5, 500ms ... 0 is no limit [{LOCK_TIMEOUT_S:.0f}s].")
    @click.option("--wait", help=f"Wait for another runner [--lock-timeout, or {WAIT_S:.0f}s].")
    @click.option("--statement-timeout", help="End a statement after this time [no limit].")
    @click.option("--retries", type=click.IntRange(0), default=3, show_default=True, help="After a lock timeout.")
    @click.option("--compatible", is_flag=True, help="Only warn where golang-migrate would go on.")
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
        **own: Any,
    ) -> None:
        started = time.monotonic()
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
            with call.catching_signals():
                function(call, **own)
        except ProvisionError as error:
            if as_json:
                answers = ("what", "where", "seen", "allowed", "run")
                call.result(
                    {
                        "error": {name: printable(getattr(error, name)) for name in answers},
                        "applied": report.steps(call.narrator.steps, "up"),
                        "reverted": report.steps(call.narrator.steps, "down"),
                        "seconds": round(time.monotonic() - started, 3),
                    },
                    "",
                )
            raise

    return wrapped
