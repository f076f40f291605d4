"""Settings that other systems install, as rows of the benchmark: facts from their repositories. Reads its `*.toml`.

A file has the source with commit and date, the settings with one value for every host, and the first major of settings
that older majors lack. `rules.py` computes the values that depend on the host. Refuses a setting that a major lacks.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from benchmarks.peers import rules
from provision import compatibility, quoting
from provision.errors import UsageError
from provision.tuning import Host, catalogue

OLDEST = min(compatibility.POSTGRESQL)


@dataclass(frozen=True)
class Peer:
    """Another system's settings. `since` maps a setting to the first major for which the system sets it."""

    name: str
    source: str
    commit: str
    date: date
    settings: Mapping[str, str | int | float]
    since: Mapping[str, int] = field(default_factory=dict)

    def values(self, host: Host, major: int) -> dict[str, str]:
        """Return every setting for a host and a major. Raises UsageError if the server would refuse one."""
        given = {**self.settings, **rules.RULES[self.name](host)}
        present = {name: str(value) for name, value in given.items() if self.since.get(name, OLDEST) <= major}
        if problems := catalogue.judge(self.name, present, major).problems:
            raise UsageError("settings that PostgreSQL refuses", where=self.name, seen="; ".join(problems))
        return present

    def conf(self, host: Host, major: int) -> str:
        """Return the settings in the syntax of postgresql.conf."""
        lines = [f"# {self.source}, {self.commit[:7]}, {self.date}"]
        values = self.values(host, major).items()
        return "\n".join([*lines, *(f"{name} = {quoting.postgresql_conf(value)}" for name, value in values)]) + "\n"

    def huge_pages(self, host: Host) -> int:
        """Return the number of 2 MiB pages that the system reserves."""
        pages = rules.HUGE_PAGES.get(self.name)
        return pages(host) if pages else 0


@functools.cache
def all_peers() -> tuple[Peer, ...]:
    """Return the peers in the order of their names."""
    return tuple(Peer(**tomllib.loads(path.read_text())) for path in sorted(Path(__file__).parent.glob("*.toml")))
