"""WAL segments and positions: names, order, gaps. Pure.

A segment's name has 24 hexadecimal digits: timeline, high half of the position, segment number within it (XLogFileName
in PostgreSQL's xlog_internal.h). A position (LSN) is `high/low`, both hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from provision.errors import UsageError

SEGMENT_BYTES = 16 * 2**20  # initdb's default
History = dict[int, tuple[int, int]]  # by timeline: its parent, and the position where it branched off
_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_HISTORY = re.compile(r"\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)")


@dataclass(frozen=True, order=True)
class Segment:
    """One WAL segment: its timeline and its number counted from position 0."""

    timeline: int
    number: int
    size: int = SEGMENT_BYTES

    @classmethod
    def parse(cls, name: str, size: int = SEGMENT_BYTES) -> Segment:
        """Parse the first 24 digits of a file name. Raises UsageError."""
        found = _NAME.match(name)
        if found is None:
            raise UsageError("not a WAL segment name", seen=name[:60], allowed="24 hexadecimal digits")
        timeline, high, low = (int(part, 16) for part in found.groups())
        return cls(timeline, high * (2**32 // size) + low, size)

    @property
    def name(self) -> str:
        """Its file name."""
        high, low = divmod(self.number, 2**32 // self.size)
        return f"{self.timeline:08X}{high:08X}{low:08X}"

    @property
    def start(self) -> int:
        """The position of its first byte."""
        return self.number * self.size

    @property
    def end(self) -> int:
        """The position after its last byte."""
        return self.start + self.size


def position(lsn: str) -> int:
    """Convert `0/3000060` to a byte position. Raises UsageError."""
    found = _LSN.fullmatch(lsn.strip())
    if found is None:
        raise UsageError("not a WAL position", seen=lsn[:40], allowed="two hexadecimal numbers, such as 0/3000060")
    return int(found[1], 16) << 32 | int(found[2], 16)


def text(lsn: int) -> str:
    """Format a position as PostgreSQL does."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def is_segment(name: str) -> bool:
    """Return whether a name is a segment's, not a history or partial file's."""
    return _NAME.fullmatch(name) is not None


def archived(names: Iterable[str], size: int = SEGMENT_BYTES) -> list[Segment]:
    """Select the complete segments from an archive's file names, in order: no history, backup or partial files.

    Files under a temporary name are left out: pgBackRest leaves one if the disk fills while it writes.
    """
    incomplete = re.compile(r"\.(partial|backup|pgbackrest\.tmp)")
    found = {Segment.parse(name, size) for name in names if _NAME.match(name) and not incomplete.search(name)}
    return sorted(found)


def reach(
    segments: Iterable[Segment], start: Segment, history: History, line: list[int]
) -> tuple[Segment | None, Segment | None]:
    """Follow the archive from `start` along the timelines `line`.

    Return the last segment before the first gap (None if `start` is missing), and the first missing segment if later
    ones exist.
    """
    have = set(segments)

    def at(number: int) -> Segment:
        # The segment where a new timeline begins is archived under the new timeline's name.
        behind = [each for each in line[1:] if number >= history[each][1] // start.size]
        return Segment(behind[-1] if behind else line[0], number, start.size)

    number = start.number
    while at(number) in have:
        number += 1
    last = max((each.number for each in have if each == at(each.number)), default=number)
    return at(number - 1) if number > start.number else None, at(number) if last > number else None


def lineage(start: int, after: int, history: History, end: int) -> list[int]:
    """List the timelines from `start` to `end`, in order; [] if `end` is not a descendant.

    A timeline that branched off `start` before the position `after` does not count: it lacks what was written on
    `start` up to there (a backup, a restore point), and PostgreSQL refuses to recover to it.
    """
    line = [end]
    while line[-1] != start and line[-1] in history:
        line.append(history[line[-1]][0])
    if line[-1] != start or (len(line) > 1 and history[line[-2]][1] < after):
        return []
    return line[::-1]


def parse_history(content: str) -> tuple[int, int] | None:
    """Return parent timeline and branch position from the last line of a timeline history file."""
    rows = [found for line in content.splitlines() if (found := _HISTORY.match(line))]
    return (int(rows[-1][1]), position(rows[-1][2])) if rows else None
