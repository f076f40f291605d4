"""WAL segments and positions: names, order, gaps. Pure.

A segment's name is 24 hexadecimal digits: timeline, high half of the position, number of the segment within it
(XLogFileName in PostgreSQL's xlog_internal.h). A position (LSN) is written `high/low`, both hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from provision.errors import UsageError

SEGMENT_BYTES = 16 * 2**20  # what initdb makes unless it is told otherwise
_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_HISTORY = re.compile(r"\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)")


@dataclass(frozen=True, order=True)
class Segment:
    """One segment of WAL: its timeline, and its number since the beginning of all WAL."""

    timeline: int
    number: int
    size: int = SEGMENT_BYTES

    @classmethod
    def parse(cls, name: str, size: int = SEGMENT_BYTES) -> Segment:
        """Read the first 24 digits of a file's name. Raises UsageError."""
        found = _NAME.match(name)
        if found is None:
            raise UsageError("not the name of a WAL segment", seen=name[:60], allowed="24 hexadecimal digits")
        timeline, high, low = (int(part, 16) for part in found.groups())
        return cls(timeline, high * (2**32 // size) + low, size)

    @property
    def name(self) -> str:
        """Its file's name."""
        high, low = divmod(self.number, 2**32 // self.size)
        return f"{self.timeline:08X}{high:08X}{low:08X}"

    @property
    def start(self) -> int:
        """The position of its first byte."""
        return self.number * self.size

    @property
    def end(self) -> int:
        """The position behind its last byte."""
        return self.start + self.size


def position(lsn: str) -> int:
    """Turn `0/3000060` into a number of bytes. Raises UsageError."""
    found = _LSN.fullmatch(lsn.strip())
    if found is None:
        raise UsageError("not a WAL position", seen=lsn[:40], allowed="two hexadecimal numbers, such as 0/3000060")
    return int(found[1], 16) << 32 | int(found[2], 16)


def text(lsn: int) -> str:
    """Write a position as PostgreSQL does."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def archived(names: Iterable[str], size: int = SEGMENT_BYTES) -> list[Segment]:
    """Pick the whole segments of an archive's file names, in order: no history, backup or partial files."""
    found = {
        Segment.parse(name, size) for name in names if _NAME.match(name) and not re.search(r"\.(partial|backup)", name)
    }
    return sorted(found)


def missing(segments: Iterable[Segment], start: Segment) -> Segment | None:
    """Name the first segment that is missing behind `start` although a later one of its timeline is there."""
    numbers = {segment.number for segment in segments if segment.timeline == start.timeline}
    last = max(numbers, default=start.number)
    for number in range(start.number, last + 1):
        if number not in numbers:
            return Segment(start.timeline, number, start.size)
    return None


def reach(
    segments: Iterable[Segment], start: Segment, history: dict[int, tuple[int, int]], timeline: int = 0
) -> Segment | None:
    """Follow the archive from `start` for as long as nothing is missing; None when `start` itself is missing.

    `history` tells for a timeline its parent and the position at which it left it. `timeline` is the one to end on;
    0 is the newest that descends from the start's, as `recovery_target_timeline = latest` is.
    """
    have = set(segments)
    line = lineage(start.timeline, history, timeline)
    current, number, reached = line.pop(0), start.number, None
    while True:
        # The segment in which a new timeline begins is archived under that timeline's name.
        while line and number >= history[line[0]][1] // start.size:
            current = line.pop(0)
        segment = Segment(current, number, start.size)
        if segment not in have:
            return reached
        reached, number = segment, number + 1


def lineage(start: int, history: dict[int, tuple[int, int]], end: int = 0) -> list[int]:
    """Name the timelines from `start` to `end` (0: its newest descendant), in order; [start] where there is no way."""
    for newest in [end] if end else sorted(history, reverse=True):
        line = [newest]
        while line[-1] != start and line[-1] in history:
            line.append(history[line[-1]][0])
        if line[-1] == start:
            return line[::-1]
    return [start]


def parse_history(content: str) -> tuple[int, int] | None:
    """Give parent and position of the last line of a timeline history file."""
    rows = [found for line in content.splitlines() if (found := _HISTORY.match(line))]
    return (int(rows[-1][1]), position(rows[-1][2])) if rows else None
