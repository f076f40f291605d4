"""Recovery targets: parse them, and choose the backup set that reaches them. Pure.

A target is `latest`, `immediate`, `time:2026-11-23 14:05:00+01:00` (or `... Europe/Berlin`), `xid:1234`,
`name:before-v2` or `lsn:0/3000060`. A time without a zone is refused because its meaning depends on the machine.
"""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime

from provision.errors import UsageError
from provision.host.backup import show, wal
from provision.host.backup.tool import Archive, Set

KINDS = ("latest", "immediate", "time", "xid", "name", "lsn")


@dataclass(frozen=True)
class Target:
    """Kind and value as in PostgreSQL's recovery settings; `at` is the Unix time of a time target."""

    kind: str
    value: str = ""
    at: float = 0

    @property
    def options(self) -> dict[str, str]:
        """The recovery settings for this target."""
        if self.kind == "latest":
            return {}
        value = "immediate" if self.kind == "immediate" else self.value
        name = "recovery_target" if self.kind == "immediate" else f"recovery_target_{self.kind}"
        return {name: value, "recovery_target_action": "pause"}

    def __str__(self) -> str:
        """Return kind and value."""
        return f"{self.kind} {self.value}".strip()


def parse(text: str) -> Target:
    """Parse a target. Raises UsageError."""
    kind, _, value = text.strip().partition(":")
    value = value.strip()
    if kind not in KINDS or bool(value) != (kind not in ("latest", "immediate")):
        raise UsageError(
            "not a recovery target",
            seen=repr(text)[:80],
            allowed="latest, immediate, time:2026-11-23 14:05:00+01:00, xid:NUMBER, name:RESTORE POINT, lsn:0/3000060",
        )
    if kind == "time":
        moment = _moment(value)
        return Target(kind, moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00"), moment.timestamp())
    if kind == "lsn":
        return Target(kind, wal.text(wal.position(value)))
    if kind == "xid" and not value.isdigit():
        raise UsageError(
            "not a transaction id", seen=value[:40], allowed="a number, as pg_current_xact_id() returns it"
        )
    if kind == "name" and not re.fullmatch(r"[^'\x00-\x1f]{1,63}", value):
        raise UsageError("not the name of a restore point", seen=repr(value)[:80], allowed="1 to 63 characters")
    return Target(kind, value)


def _moment(text: str) -> datetime:
    words = text.split()
    try:
        if len(words) > 1 and words[-1][0].isalpha() and words[-1] != "Z":
            return _local(" ".join(words[:-1]), zoneinfo.ZoneInfo(words[-1]))
        moment = datetime.fromisoformat(re.sub(r"\s+([Z+-])", r"\1", text))
    except (ValueError, zoneinfo.ZoneInfoNotFoundError, OSError):
        raise UsageError(
            "not a valid time", seen=text[:60], allowed="2026-11-23 14:05:00+01:00 or 2026-11-23 14:05 Europe/Berlin"
        ) from None
    if moment.tzinfo is None:
        raise UsageError(
            "the time has no time zone",
            seen=text[:60],
            allowed=f"{text[:40]}+00:00 (UTC), or a time zone such as Europe/Berlin",
        )
    return moment


def _local(text: str, zone: zoneinfo.ZoneInfo) -> datetime:
    """Parse a local time. Raises UsageError for one that does not exist or is ambiguous (clock change)."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        raise UsageError("the time has two time zones", seen=f"{text} {zone}"[:60], allowed="one of them")
    first, second = moment.replace(tzinfo=zone, fold=0), moment.replace(tzinfo=zone, fold=1)
    if first.utcoffset() != second.utcoffset():
        raise UsageError(
            "the time is ambiguous or does not exist (clock change)",
            seen=f"{text} {zone}"[:60],
            allowed=f"{first.isoformat(' ')} or {second.isoformat(' ')}",
        )
    return first


@dataclass(frozen=True)
class Window:
    """The recovery window of a set: from the end of its backup to the end of the archive, or to a gap in it.

    `timeline` is the last timeline of the window, and `newest` whether it is the newest of the archive; an older one
    was abandoned by a restore to an earlier moment. `reached` is the last segment of the unbroken WAL, `gap` the first
    missing segment if there are later ones. `since` and `until` are Unix times.
    """

    set: Set
    timeline: int
    newest: bool
    since: int
    until: float
    reached: wal.Segment
    gap: wal.Segment | None

    @property
    def options(self) -> list[str]:
        """The pgBackRest options to follow the timeline. `current` where possible: a number requires a history file."""
        if self.newest:
            return []
        own = int(self.set.wal_start[:8], 16) == self.timeline
        return ["--target-timeline=current" if own else f"--target-timeline={self.timeline}"]

    def __str__(self) -> str:
        """Describe the window."""
        ends = f"{show.moment(self.until)} (WAL {self.reached.name})"
        broken = f"; {self.gap.name} is missing, so nothing after it can be reached" if self.gap else ""
        left = "" if self.newest else f", on timeline {self.timeline}, which a restore abandoned"
        return f"from {show.moment(self.since)} (set {self.set.label}, {self.set.lsn_stop}) to {ends}{left}{broken}"


def window(one: Set, archive: Archive, times: dict[str, int], timeline: int = 0) -> Window | None:
    """Return the recovery window of a set; None if its own WAL is incomplete or `timeline` is out of reach.

    `timeline` 0 is the newest that the set belongs to; a set does not belong to a timeline that branched off before it.
    `times` maps a segment's name (24 digits) to when it was archived.
    """
    size = archive.segments[0].size if archive.segments else wal.SEGMENT_BYTES
    start = wal.Segment.parse(one.wal_start, size)
    last = max([start.timeline, *archive.history, *(each.timeline for each in archive.segments)])
    ends = [timeline] if timeline else sorted({start.timeline, *archive.history}, reverse=True)
    lines = (wal.lineage(start.timeline, wal.position(one.lsn_stop), archive.history, end) for end in ends)
    line = next((line for line in lines if line), [])
    reached, gap = wal.reach(archive.segments, start, archive.history, line) if line else (None, None)
    if reached is None or reached.number < wal.Segment.parse(one.wal_stop, size).number:
        return None
    return Window(one, line[-1], line[-1] == last, one.stop, float(times.get(reached.name, one.stop)), reached, gap)


def choose(target: Target, windows: list[Window], now: float, label: str = "", timeline: int = 0) -> Window:
    """Choose the newest set that reaches the target. Raises UsageError with the reachable windows.

    `timeline` 0 is the newest; an abandoned timeline is reached only by its number. The position of an xid or a restore
    point is unknown before replay, so they start from the oldest set unless `label` names one. A set with damaged pages
    is used only if `label` names it, because WAL replay does not repair them.
    """
    allowed = "; ".join(map(str, windows)) or "nothing: no set has complete WAL"
    fitting = [each for each in windows if label in ("", each.set.label)]
    if not timeline:
        fitting = [each for each in fitting if each.newest] or (fitting if label else [])
    if label and not fitting:
        raise UsageError(
            "no such set, or its WAL is missing",
            seen=label, allowed=", ".join(each.set.label for each in windows) or "none", run="provision backup status",
        )  # fmt: skip
    if target.kind == "time":
        if target.at > now:
            raise UsageError("the target is in the future", seen=str(target), allowed=allowed)
        fitting = [each for each in fitting if each.since <= target.at]
        fitting = [each for each in fitting if each.gap is None or target.at <= each.until] or []
    if target.kind == "lsn":
        position = wal.position(target.value)
        fitting = [each for each in fitting if wal.position(each.set.lsn_stop) <= position <= each.reached.end]
    if target.kind == "latest":
        fitting = [each for each in fitting if each.gap is None]
    if not fitting:
        raise UsageError(
            "this target cannot be reached", seen=str(target), allowed=allowed, run="provision backup status"
        )
    sound = [each for each in fitting if label or not each.set.damaged]
    if not sound:
        raise UsageError(
            "only sets with damaged pages reach this target",
            seen=", ".join(each.set.label for each in fitting),
            allowed="naming one of them (--set), to save readable data",
            run="docs/the-repository-is-damaged.md",
        )
    return sound[0] if target.kind in ("xid", "name") and not label else sound[-1]
