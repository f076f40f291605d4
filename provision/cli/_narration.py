"""Progress messages on stderr, with durations."""

import contextlib
import time
from collections.abc import Iterator

from provision.cli._echo import echo
from provision.controller.narration import Narration


class Stderr(Narration):
    """Prints each step and its duration on stderr."""

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Print the title, then the duration and whether the step failed."""
        echo(f"{title} ...", err=True)
        started = time.monotonic()
        outcome = "failed after"
        try:
            yield
            outcome = "done in"
        finally:
            echo(f"  {outcome} {time.monotonic() - started:.1f} s", err=True)

    def note(self, text: str) -> None:
        """Print one note."""
        echo(f"note: {text}", err=True)
