"""Readings of pg_stat_statements on disk, so that two moments can be compared. Does IO, as postgres.

One file per reading in /var/lib/provision/queries, at most one every ten minutes, kept for a week. A file has the
counters of the KEPT statements with the most execution time, without texts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from provision import secure_path, system
from provision.errors import UsageError
from provision.host.queries import ranking
from provision.host.queries.statements import Counters, Reading, Statement, values

INTERVAL_S, KEEP_S = 600, 7 * 86400
KEPT = 500
"""Statements in a file: some 60 kB; those with less time do not change a ranking."""
MARGIN_S = 30
"""The timer's moments vary by its accuracy."""
UNITS = {"m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"([0-9]+)([mhd])")


@dataclass(frozen=True)
class Snapshot:
    """The counters of a moment by statement. `complete`: it has every statement of that moment."""

    at: float
    reset: float
    counters: Mapping[tuple[str, str, str], Counters]
    complete: bool


@dataclass(frozen=True)
class Difference:
    """What statements used since a moment (Unix time); `unknown` of them were not in the earlier snapshot."""

    since: float
    statements: tuple[Statement, ...]
    unknown: int


def folder() -> Path:
    """The directory of the files."""
    return system.EVIDENCE / "queries"


def seconds(text: str) -> int:
    """Read an age: 30m, 1h, 2d. Raises UsageError."""
    match = _AGE.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise UsageError("--since is not a time", seen=text, allowed="reset, or an age such as 30m, 1h, 2d")
    return int(match[1]) * UNITS[match[2]]


def keep(reading: Reading) -> bool:
    """Write a reading unless the newest file is younger than INTERVAL_S; remove files older than KEEP_S."""
    times = _times()
    if times and 0 <= reading.at - times[-1] < INTERVAL_S - MARGIN_S:
        return False
    chosen = ranking.ranked(reading.statements, "total", KEPT)
    rows = [[*each.statement.key, *values(each.statement.counters)] for each in chosen]
    used = sum(1 for each in reading.statements if each.counters.calls > 0)
    content = {"at": reading.at, "reset": reading.reset, "complete": used <= KEPT, "statements": rows}
    path = folder() / f"{int(reading.at)}.json"
    owner = (os.geteuid(), os.getegid())
    secure_path.replace(path, json.dumps(content).encode(), 0o640, owner, make=True)
    for old in times:
        if reading.at - old > KEEP_S:
            (folder() / f"{old}.json").unlink(missing_ok=True)
    return True


def before(moment: float) -> Snapshot | None:
    """Return the newest snapshot at or before a moment, otherwise the oldest one; None if there is none."""
    times = _times()
    earlier = [each for each in times if each <= moment + MARGIN_S]
    chosen = earlier[-1] if earlier else times[0] if times else None
    if chosen is None:
        return None
    found = json.loads(secure_path.read(folder() / f"{chosen}.json")[0])
    counters = {(row[0], row[1], row[2]): Counters(*row[3:]) for row in found["statements"]}
    return Snapshot(found["at"], found["reset"], counters, found["complete"])


def difference(reading: Reading, earlier: Snapshot) -> Difference:
    """Return what each statement used since the snapshot.

    After a reset in between, everything since the reset. A statement that is missing in a complete snapshot, or that
    was evicted and came again, counts from zero; one that is missing in an incomplete snapshot is left out. Pure.
    """
    if reading.reset > earlier.at:
        return Difference(reading.reset, reading.statements, 0)
    found, unknown = [], 0
    for each in reading.statements:
        old = earlier.counters.get(each.key)
        if old is None and not earlier.complete:
            unknown += 1
        elif old is None or old.calls > each.counters.calls:
            found.append(each)
        else:
            found.append(replace(each, counters=each.counters.minus(old)))
    return Difference(earlier.at, tuple(found), unknown)


def _times() -> list[int]:
    return sorted(int(path.stem) for path in folder().glob("*.json") if path.stem.isdigit())
