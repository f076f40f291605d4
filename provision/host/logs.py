"""Find slow statements, lock waits and errors in PostgreSQL's log. Reads files, also rotated and compressed ones.

Log lines start with the log_line_prefix of provision.tuning.logs (%m [%p]). DETAIL, STATEMENT and lines that start with
a tab are part of the message before them. Timestamps are in the time zone of log_timezone: UTC or the host's own.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from provision.errors import HostError, UsageError

FOLDER = Path("/var/log/postgresql")
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


def read(paths: Iterable[Path], after: datetime) -> Iterator[Entry]:
    """Yield the messages after a time, in the order of the files."""
    for path in paths:
        with _open(path) as stream:
            yield from (entry for entry in entries(stream) if entry.at >= after)


def entries(lines: Iterable[str]) -> Iterator[Entry]:
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
            current = Entry(_moment(head), int(head["pid"]), head["who"].strip(), head["level"], [head["text"]])
    if current is not None:
        yield current


def _moment(head: re.Match[str]) -> datetime:
    at = datetime.fromisoformat(head["at"])
    return at.replace(tzinfo=UTC) if head["zone"] in ("UTC", "GMT") else at.astimezone()


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", errors="replace")
    return path.open(errors="replace")
