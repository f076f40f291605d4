"""Print results and messages: every command uses `echo`, for a text may hold names from a database or a log."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress

import click

from provision.quoting import visible


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines of text; control characters that would reach the terminal are shown as escapes."""
    click.echo(visible(str(text), lines=True), err=err, nl=nl)


def restrict_output() -> None:
    """Before a password is printed: revoke the access of group and others to a regular file that stdout writes to.

    The shell created the file with the caller's umask, mostly 0644. A file of another user keeps its mode.
    """
    with suppress(OSError, ValueError):  # stdout without a file descriptor, or a file of another user
        number = sys.stdout.fileno()
        mode = os.fstat(number).st_mode
        if stat.S_ISREG(mode) and mode & 0o077:
            private = stat.S_IMODE(mode) & 0o700
            os.fchmod(number, private)
            echo(f"note: the output can contain a password: its file now has mode {private:04o}", err=True)
