"""Progress on stderr: on a terminal, the running step and its time on one line that is rewritten in place.

Elsewhere, one line for each step as it begins and no times. Long work runs in the main thread, which receives signals;
a second thread keeps the time.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from provision.cli._echo import echo
from provision.quoting import visible

SHOWN_AFTER_S = 1
TICK_S = 0.5


class Line:
    """A line of the terminal that is rewritten in place."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._shown = 0

    def show(self, text: str) -> None:
        """Replace the line, cut to the width of the terminal."""
        text = visible(text)[: shutil.get_terminal_size().columns - 1]
        click.echo("\r" + text.ljust(self._shown), nl=False, err=True)
        self._shown = len(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            click.echo("\r" + " " * self._shown + "\r", nl=False, err=True)
            self._shown = 0


class Steps(threading.Thread):
    """The steps of one piece of work. Calling it names the next step."""

    def __init__(self, step: str) -> None:
        """Begin with this step; `start` begins to show it."""
        super().__init__(daemon=True)
        self._line, self._lock, self._over = Line(), threading.Lock(), threading.Event()
        self._step, self._since = step, time.monotonic()

    def run(self) -> None:
        """Show the running step and its time until `finish`."""
        while not self._over.wait(TICK_S):
            with self._lock:
                if (seconds := time.monotonic() - self._since) >= SHOWN_AFTER_S and not self._over.is_set():
                    self._line.show(f"{self._step}: {seconds:.0f} s")

    def __call__(self, text: str) -> None:
        """Leave the finished step with its time, and begin the next."""
        if not self.is_alive():
            echo(text, err=True)
            return
        with self._lock:
            self._finished()
            self._step, self._since = text, time.monotonic()

    def finish(self) -> None:
        """Leave the last step with its time."""
        self._over.set()
        with self._lock:
            self._finished()

    def _finished(self) -> None:
        self._line.clear()
        if (seconds := time.monotonic() - self._since) >= SHOWN_AFTER_S:
            echo(f"{self._step}: {seconds:.0f} s", err=True)


@contextmanager
def working(step: str) -> Iterator[Callable[[str], None]]:
    """Show `step` within a `with` block, if stderr is a terminal; yield a function that names the next step."""
    steps = Steps(step)
    if not sys.stderr.isatty():
        yield steps
        return
    steps.start()
    try:
        yield steps
    finally:
        steps.finish()
