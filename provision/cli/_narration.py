"""Narration on stderr: what is being done and how long it took. Stdout stays the result's."""

import contextlib
import time
from collections.abc import Iterator

import click


@contextlib.contextmanager
def stage(title: str) -> Iterator[None]:
    """Announce a step on stderr, then say how long it took; a step that fails says so."""
    started = time.monotonic()
    click.echo(f"{title} ...", err=True)
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        click.echo(f"  {outcome} {time.monotonic() - started:.1f} s", err=True)
