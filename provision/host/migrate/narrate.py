"""Progress callbacks of a migration run. The base class ignores them; the command line prints them."""

from __future__ import annotations

from provision.host.migrate.files import Problem
from provision.host.migrate.steps import Step


class Narrator:
    """Override the callbacks you need."""

    def warn(self, problem: Problem) -> None:
        """Report a problem that does not stop the run."""

    def note(self, text: str) -> None:
        """Report one line of progress."""

    def running(self, label: str, seconds: float, detail: str) -> None:
        """Called several times a second while a file runs or the run waits for a lock."""

    def done(self, step: Step, seconds: float) -> None:
        """Called after a step is committed."""
