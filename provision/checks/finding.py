"""What a check found: one value for the terminal, for JSON, and for whoever mends it. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is. ACCEPTED: a development database may, production may not. UNSEEN: this role may not look."""

    CRITICAL = "critical"
    WARNING = "warning"
    ACCEPTED = "accepted"
    UNSEEN = "unseen"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: what was seen, what is wanted, why it matters, the command that mends it.

    `safe` says that `doctor --fix` may run the command: it loses nothing, cuts nobody off and lets nobody in.
    """

    id: str
    area: str
    severity: Severity
    seen: str
    wanted: str
    why: str
    fix: str
    safe: bool = False

    @property
    def counts(self) -> bool:
        """Say whether somebody has to do something."""
        return self.severity in (Severity.CRITICAL, Severity.WARNING)

    def __str__(self) -> str:
        """Print it for a terminal."""
        rows = (("seen", self.seen), ("wanted", self.wanted), ("why", self.why), ("fix", self.fix))
        lines = [f"{self.severity.value}: {self.id} ({self.area}{', safe to fix' if self.safe else ''})"]
        return "\n".join([*lines, *(f"  {label + ':':<8}{text}" for label, text in rows if text)])


def psql(database: str, *statements: str, user: str = "") -> str:
    """Give the command that runs statements on the host itself, as the superuser or (`user`) as a login role."""
    words = ["runuser", "-u", "postgres", "--", "psql", "-d", database, *(["-U", user] if user else [])]
    return shlex.join([*words, *(word for each in statements for word in ("-c", each))])
