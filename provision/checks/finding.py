"""The result of a check: one value for the terminal, for JSON and for the audit. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from provision import quoting


class Severity(StrEnum):
    """How urgent a finding is.

    ACCEPTED: allowed on a development host, or accepted by name in the inventory. UNSEEN: the caller lacks the
    privilege to look.
    """

    CRITICAL = "critical"
    WARNING = "warning"
    ACCEPTED = "accepted"
    UNSEEN = "unseen"


@dataclass(frozen=True)
class Finding:
    """One deviation: the state seen, the state expected, why it matters, the command that fixes it.

    `safe`: `doctor --fix` may run the command. It loses no data, ends no session and grants no access.
    """

    id: str
    area: str
    severity: Severity
    seen: str
    expected: str
    why: str
    fix: str
    safe: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Finding:
        """Read a finding from the JSON of another host. Raises TypeError or ValueError for another version's form."""
        return cls(**{**values, "severity": Severity(values.get("severity", ""))})

    @property
    def counts(self) -> bool:
        """Whether the finding needs action."""
        return self.severity in (Severity.CRITICAL, Severity.WARNING)

    def __str__(self) -> str:
        """Format the finding for a terminal."""
        rows = (("seen", self.seen), ("expected", self.expected), ("why", self.why), ("fix", self.fix))
        lines = [f"{self.severity.value}: {self.id} ({self.area}{', safe to fix' if self.safe else ''})"]
        return "\n".join([*lines, *(f"  {label + ':':<10}{quoting.visible(text)}" for label, text in rows if text)])


def psql(database: str, *statements: str, user: str = "") -> str:
    """Return the command that runs statements on the host as the superuser, or as the role `user`.

    As the superuser only statements that call no function by name in a database of another owner, who could have a
    function of that name, and that run no code of a table's owner.
    """
    where = database if quoting.is_pgbouncer_key(database) else quoting.conninfo({"dbname": database})
    words = ["runuser", "-u", "postgres", "--", "psql", *(["-U", user] if user else []), "-d", where]
    return shlex.join([*words, *(word for each in statements for word in ("-c", each))])
