"""The files that a command runs, their order, and the version after each. Pure.

The order is golang-migrate's (migrate.go: readUp, readDown, read): up moves to the next existing version, down to the
previous existing version or to none.
"""

from __future__ import annotations

from dataclasses import dataclass

from provision.errors import MigrationError
from provision.host.migrate.files import NONE, Catalogue, Direction, File


@dataclass(frozen=True, slots=True)
class Step:
    """One version change: run `file` (None: nothing to run), then the database is at `target`."""

    version: int
    direction: Direction
    start: int
    target: int
    title: str
    file: File | None

    @property
    def label(self) -> str:
        """The name of the step in messages: the file name, or the missing file."""
        return self.file.name if self.file else f"{self.version} ({self.direction} file missing)"


@dataclass(frozen=True, slots=True)
class Route:
    """The steps of one command, and the number of requested steps that do not exist."""

    steps: tuple[Step, ...]
    short: int = 0


def up(catalogue: Catalogue, current: int, limit: int | None = None) -> Route:
    """Apply the next `limit` versions, or all."""
    _require(catalogue, current)
    ahead = [version for version in catalogue.versions if version > current]
    return _route(catalogue, current, ahead[:limit], limit)


def down(catalogue: Catalogue, current: int, limit: int | None = None) -> Route:
    """Revert the last `limit` versions, or all."""
    _require(catalogue, current)
    behind = [version for version in reversed(catalogue.versions) if version <= current]
    targets = [*behind[1:], NONE] if behind else []
    return _route(catalogue, current, targets[:limit], limit)


def goto(catalogue: Catalogue, current: int, version: int) -> Route:
    """Migrate up or down to `version`, which must exist."""
    _require(catalogue, current)
    _require(catalogue, version)
    if version >= current:
        return up(catalogue, current, sum(current < other <= version for other in catalogue.versions))
    return down(catalogue, current, sum(version < other <= current for other in catalogue.versions))


def _route(catalogue: Catalogue, current: int, targets: list[int], limit: int | None) -> Route:
    steps = []
    for target in targets:
        direction: Direction = "up" if target > current else "down"
        version = max(target, current)
        pair = catalogue.by_version[version]
        file = pair.up if direction == "up" else pair.down
        steps.append(Step(version, direction, current, target, pair.title, file))
        current = target
    return Route(tuple(steps), 0 if limit is None else limit - len(steps))


def _require(catalogue: Catalogue, version: int) -> None:
    if version == NONE:
        return
    pair = catalogue.by_version.get(version)
    if pair is None or not (pair.up or pair.down):
        raise MigrationError(
            f"no migration found for version {version}",
            seen=f"versions {_span(catalogue.versions)}",
            allowed="a version with files in the directory",
            run="restore its files from version control, then: provision migrate status",
        )


def _span(versions: list[int]) -> str:
    return f"{versions[0]} to {versions[-1]} in the directory" if versions else "no migrations in the directory"
