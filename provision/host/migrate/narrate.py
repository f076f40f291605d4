"""Who is told what goes on while migrations run: this one keeps it to itself, the command line has one that prints."""

from __future__ import annotations

from provision.host.migrate.files import Problem
from provision.host.migrate.steps import Step


class Narrator:
    """Override what you want to hear of."""

    def warn(self, problem: Problem) -> None:
        """Something is not as it should be, and the run goes on."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""

    def running(self, label: str, seconds: float, detail: str) -> None:
        """Called several times a second while a file runs or a lock is waited for."""

    def done(self, step: Step, seconds: float) -> None:
        """Called when the version after a step is committed."""
