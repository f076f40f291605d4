"""The backup sets of a stanza in one repository and the recovery window of each. Reads the repository."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from provision.host.backup import targets, tool, wal
from provision.host.backup.targets import Target, Window
from provision.host.backup.tool import Archive, BackupError, Repository, Set
from provision.plan.schema import Plan


@dataclass(frozen=True)
class Catalogue:
    """The repository of a stanza and the archive of one of its clusters, by its number `database` in the stanza.

    A stanza has several clusters after a major upgrade. `times` maps a segment's name to when it was archived (Unix
    time).
    """

    repository: Repository
    database: int
    archive: Archive
    times: dict[str, int]
    timeline: int = 0

    @classmethod
    def read(cls, plan: Plan, stanza: str = "", timeline: int = 0, number: int = 1, major: int = 0) -> Catalogue:
        """Read the repository `number`. Raises BackupError if it cannot be read.

        `major` chooses the newest cluster of that major, where there is one, instead of the stanza's current one.
        """
        repository = tool.info(stanza or plan.backup.stanza, number)
        fitting = [id_ for id_, version in repository.majors.items() if version == str(major)]
        return cls.of(repository, max(fitting, default=repository.current), timeline)

    @classmethod
    def of(cls, repository: Repository, database: int, timeline: int = 0) -> Catalogue:
        """Read the archive of a cluster. Raises BackupError."""
        folder = f"archive/{repository.stanza}/{repository.archive_id(database)}"
        rows = tool.listing(repository.stanza, folder, repository.number)
        times = {Path(name).name[:24]: int(row["time"]) for name, row in rows.items() if row["type"] == "file"}
        return cls(repository, database, tool.archive(repository, database, rows), times, timeline)

    @property
    def major(self) -> str:
        """The major of PostgreSQL of this cluster."""
        return self.repository.majors[self.database]

    @property
    def others(self) -> list[Catalogue]:
        """The stanza's other clusters that have sets, oldest first: those of before or after a major upgrade."""
        ids = sorted({each.database for each in self.repository.sets} - {self.database})
        majors = self.repository.majors
        return [Catalogue.of(self.repository, id_, self.timeline if majors[id_] == self.major else 0) for id_ in ids]

    @property
    def sets(self) -> list[Set]:
        """The sets of this cluster, oldest first."""
        return [each for each in self.repository.sets if each.database == self.database]

    @property
    def windows(self) -> list[Window]:
        """The recovery windows, oldest first. A set that lacks WAL for its own consistency has none."""
        found = (targets.window(each, self.archive, self.times, self.timeline) for each in self.sets)
        return [each for each in found if each is not None]

    @property
    def broken(self) -> list[str]:
        """The sets that cannot be restored because WAL is missing."""
        found = {each.label: targets.window(each, self.archive, self.times) for each in self.sets}
        return [label for label, window in found.items() if window is None]

    def holds(self, name: str) -> bool:
        """Return whether the segment `name` is in the archive."""
        return any(each.name == name for each in self.archive.segments)

    def choose(self, target: Target, label: str = "") -> Window:
        """Choose the set for a target. Raises UsageError with the reachable windows."""
        return targets.choose(target, self.windows, time.time(), label, self.timeline)

    def provable(self, points: dict[str, int]) -> list[str]:
        """List the sets, oldest first, whose restore point is on the newest timeline. `points` has its position (LSN).

        A restore to a moment before a set, or between a set and its point, leaves them on an abandoned timeline.
        """
        last = max([1, *self.archive.history, *(each.timeline for each in self.archive.segments)])
        return [
            each.label
            for each in self.sets
            if each.label in points
            and wal.lineage(int(each.wal_start[:8], 16), points[each.label], self.archive.history, last)
        ]

    def pick(self, label: str) -> Window:
        """Return the window of a set. Raises BackupError."""
        for window in self.windows:
            if window.set.label == label:
                return window
        raise BackupError(
            "this set cannot be restored: WAL is missing from the archive",
            where=label, allowed=", ".join(each.set.label for each in self.windows) or "none",
            run="provision backup status",
        )  # fmt: skip
