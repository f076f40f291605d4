"""Narration on stderr: what is being done and how long it took. Stdout stays the result's."""

import contextlib
import time
from collections.abc import Iterator

import click

from provision.controller.narration import Narration


class Stderr(Narration):
    """Announces each step on stderr, and its time when it ends."""

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Say what begins, then how long it took; a step that fails says so."""
        click.echo(f"{title} ...", err=True)
        started = time.monotonic()
        outcome = "failed after"
        try:
            yield
            outcome = "done in"
        finally:
            click.echo(f"  {outcome} {time.monotonic() - started:.1f} s", err=True)

    def note(self, text: str) -> None:
        """Print one line."""
        click.echo(f"note: {text}", err=True)
