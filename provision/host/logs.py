"""Find slow statements, lock waits and errors in PostgreSQL's log. Reads files, also rotated and compressed ones.

Log lines start with the log_line_prefix of provision.tuning.logs (%m [%p]). DETAIL, STATEMENT and lines that start with
a tab are part of the message before them. Timestamps are in the time zone of log_timezone, which `zone` reads from the
server's files; the abbreviation in a line (IST is three zones) only tells the passes of a repeated hour apart.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import IO
from zoneinfo import ZoneInfo

from provision.errors import HostError, UsageError

FOLDER = Path("/var/log/postgresql")
LOCALTIME = Path("/etc/localtime")
HEAD = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) (?P<zone>\S+) \[(?P<pid>\d+)\] (?P<who>.*?)"
    r"(?P<level>DEBUG\d?|INFO|NOTICE|WARNING|LOG|ERROR|FATAL|PANIC|DETAIL|HINT|QUERY|CONTEXT|LOCATION|STATEMENT)"
    r":  (?P<text>.*)"
)
MORE = ("DETAIL", "HINT", "QUERY", "CONTEXT", "LOCATION", "STATEMENT")
SLOW = re.compile(r"(?:\w+: )?duration: (?P<ms>[\d.]+) ms  (?:statement|execute|parse|bind|plan)")
LOCKS = re.compile(
    r"(?:\w+: )?(?:process \d+ (?:still waiting for|acquired|avoided deadlock|detected deadlock)"
    r"|deadlock detected|canceling statement due to lock timeout|could not obtain lock)"
)
ZONE = re.compile(r"^\s*log_timezone\s*=?\s*'?([^'\s#]+)", re.M | re.I)
OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)?")
"""Zones without a name show their offset from UTC instead: -03, +0545."""
AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400}
KINDS = ("slow", "locks", "errors")


@dataclass
class Entry:
    """One message with its DETAIL, STATEMENT and continuation lines."""

    at: datetime
    pid: int
    who: str
    level: str
    lines: list[str] = field(default_factory=list)

    @property
    def duration_ms(self) -> float:
        """Duration of a slow statement in ms; 0 for other messages."""
        found = SLOW.match(self.lines[0])
        return float(found["ms"]) if found else 0.0

    @property
    def kinds(self) -> set[str]:
        """The kinds of the message, a subset of KINDS."""
        found = {"slow"} if SLOW.match(self.lines[0]) else set()
        found |= {"locks"} if LOCKS.match(self.lines[0]) else set()
        return found | ({"errors"} if self.level in ("ERROR", "FATAL", "PANIC") else set())


def since(text: str, now: datetime) -> datetime:
    """Parse an age (90s, 30m, 2h, 7d) or a time (2026-11-24 14:05, optionally with a zone). Raises UsageError."""
    age = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if age:
        return now - timedelta(seconds=int(age[1]) * AGES[age[2]])
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except ValueError:
        raise UsageError(
            "invalid time", where="--since", seen=text[:40], allowed='an age (30m, 2h, 7d) or "2026-11-24 14:05"'
        ) from None


def files(major: int, after: datetime, folder: Path = FOLDER) -> list[Path]:
    """List the server's log files modified after a time, oldest first. Raises HostError if no log exists."""
    found = sorted(folder.glob(f"postgresql-{major}-main.log*"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise HostError(
            "no log found", where=f"{folder}/postgresql-{major}-main.log", run="systemctl status 'postgresql@*'"
        )
    return [path for path in found if path.stat().st_mtime >= after.timestamp()]


def zone(configuration: Path, data: Path) -> tzinfo:
    """Return the time zone of log_timezone: the last line of postgresql.conf, conf.d and ALTER SYSTEM's file counts.

    Without one, or with one that is no name of the time zone database, it is the host's own zone.
    """
    places = [configuration / "postgresql.conf", *sorted((configuration / "conf.d").glob("*.conf"))]
    found = ""
    for path in [*places, data / "postgresql.auto.conf"]:
        with suppress(OSError):
            matches = ZONE.findall(path.read_text(errors="replace"))
            found = matches[-1] if matches else found
    with suppress(KeyError, ValueError, OSError):
        return ZoneInfo(found)
    with suppress(ValueError, OSError), LOCALTIME.open("rb") as stream:
        return ZoneInfo.from_file(stream)
    return UTC


def read(paths: Iterable[Path], after: datetime, place: tzinfo) -> Iterator[Entry]:
    """Yield the messages after a time, in the order of the files. `place` is the zone of log_timezone."""
    for path in paths:
        with _open(path) as stream:
            yield from (entry for entry in entries(stream, place) if entry.at >= after)


def entries(lines: Iterable[str], place: tzinfo = UTC) -> Iterator[Entry]:
    """Group lines into messages. Skips lines before the first message. Pure."""
    current: Entry | None = None
    for raw in lines:
        line = raw.rstrip("\n")
        head = HEAD.match(line)
        if head is None:
            if current is not None:
                current.lines.append(line.lstrip("\t"))
        elif head["level"] in MORE and current is not None and current.pid == int(head["pid"]):
            current.lines.append(f"{head['level']}: {head['text']}")
        else:
            if current is not None:
                yield current
            current = Entry(_moment(head, place), int(head["pid"]), head["who"].strip(), head["level"], [head["text"]])
    if current is not None:
        yield current


def _moment(head: re.Match[str], place: tzinfo) -> datetime:
    """Return the time of a line. `fold` selects the first or second pass through a repeated hour.

    A line whose abbreviation the zone does not have at that time was written before log_timezone was changed: UTC and
    numeric offsets are read as they are, others as if they were of the zone.
    """
    at, shown = datetime.fromisoformat(head["at"]), head["zone"]
    for fold in (0, 1):
        moment = at.replace(tzinfo=place, fold=fold)
        if moment.tzname() == shown:
            return moment
    if shown in ("UTC", "GMT"):
        return at.replace(tzinfo=UTC)
    if offset := OFFSET.fullmatch(shown):
        minutes = int(offset[2]) * 60 + int(offset[3] or 0)
        return at.replace(tzinfo=timezone(timedelta(minutes=minutes if offset[1] == "+" else -minutes)))
    return at.replace(tzinfo=place)


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", errors="replace")
    return path.open(errors="replace")
