"""Print results and messages: every command uses `echo`, for a text may hold names from a database or a log."""

from __future__ import annotations

import click

from provision.quoting import visible


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines of text; control characters that would reach the terminal are shown as escapes."""
    click.echo(visible(str(text), lines=True), err=err, nl=nl)
