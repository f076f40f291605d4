"""Find slow statements, lock waits and errors in PostgreSQL's log. Reads files, also rotated and compressed ones.

Reads structured records (jsonlog, csvlog before PostgreSQL 15), never the text log: there, a line break in a user's
name begins a line that looks like a message of the server. Timestamps are in the time zone of log_timezone, which
`zone` reads from the server's files; the abbreviation in a record (IST is three zones) only distinguishes the two hours
that a clock repeats.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import IO, Any, cast
from zoneinfo import ZoneInfo

from provision import secure_path
from provision.errors import HostError, UsageError

FOLDER = Path("/var/log/postgresql")
LOCALTIME = Path("/etc/localtime")
HEAD = re.compile(r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) (?P<zone>\S+)")
JSON_SINCE = 15
COLUMNS = (
    "timestamp", "user", "dbname", "pid", "connection_from", "session_id", "line_num", "ps", "session_start", "vxid",
    "txid", "error_severity", "state_code", "message", "detail", "hint", "internal_query", "internal_position",
    "context", "statement", "cursor_position", "location", "application_name",
)  # fmt: skip
"""The columns of csvlog (manual, "Using CSV-Format Log Output") under the keys of jsonlog; later ones are not read."""
MORE = {"detail": "DETAIL", "hint": "HINT", "internal_query": "QUERY", "context": "CONTEXT", "statement": "STATEMENT"}
LONGEST = 2**24
"""Bytes of a record: a role can log a statement of a gigabyte. A longer record is skipped and reported."""
PIECE = 2**20
TOO_LONG = f"has a record longer than {LONGEST // 2**20} MiB"
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
    """One message: its lines, then those of DETAIL, STATEMENT and the like."""

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
    """List the structured log files modified after a time, oldest first. Raises HostError if there is none."""
    name = f"postgresql-{major}-main.{'json' if major >= JSON_SINCE else 'csv'}"
    paths = [path for path in folder.glob(f"{name}*") if not path.is_symlink()]
    found = sorted(paths, key=lambda path: path.stat().st_mtime)
    if not found:
        raise HostError(
            "no structured log found", where=f"{folder}/{name}",
            allowed="logging_collector = on, which needs a restart, and jsonlog (csvlog before 15) in log_destination",
            run="ansible-playbook site.yml -i INVENTORY --tags postgresql -e postgresql_restart_allowed=true",
        )  # fmt: skip
    return [path for path in found if path.stat().st_mtime >= after.timestamp()]


def zone(configuration: Path, data: Path) -> tzinfo:
    """Return the time zone of log_timezone: the last line of postgresql.conf, conf.d and ALTER SYSTEM's file counts.

    Without one, or with one that is no name of the time zone database, it is the host's own zone.
    """
    places = [configuration / "postgresql.conf", *sorted((configuration / "conf.d").glob("*.conf"))]
    found = ""
    for path in [*places, data / "postgresql.auto.conf"]:
        with suppress(OSError):
            matches = ZONE.findall(secure_path.text(path))
            found = matches[-1] if matches else found
    with suppress(KeyError, ValueError, OSError):
        return ZoneInfo(found)
    with suppress(ValueError, OSError), LOCALTIME.open("rb") as stream:
        return ZoneInfo.from_file(stream)
    return UTC


def read(
    paths: Iterable[Path],
    after: datetime,
    place: tzinfo,
    skipped: Callable[[Path, str], None] = lambda _path, _why: None,
) -> Iterator[Entry]:
    """Yield the messages after a time, in the order of the files. `place` is the zone of log_timezone.

    `skipped` is called with each file that cannot be read, such as a pipe, and with the file of a record that is longer
    than LONGEST.
    """
    for path in paths:
        csvlog = ".csv" in path.suffixes
        try:
            with _open(path) as stream:
                texts = pieces(stream, lambda: skipped(path, TOO_LONG), quoted=csvlog)  # noqa: B023 - used in this round
                records = _from_csv(texts) if csvlog else _from_json(texts)
                yield from (entry for entry in entries(records, place) if entry.at >= after)
        except (OSError, EOFError, zlib.error) as error:
            skipped(path, str(error) or "ends within a compressed block")


def pieces(stream: IO[bytes], too_long: Callable[[], None], *, quoted: bool) -> Iterator[str]:
    """Yield the text of each record, with at most LONGEST bytes of the stream in memory.

    A record ends with a line; with `quoted` (csvlog), with the first line that ends outside double quotes. Those of a
    record that is too long are counted too: otherwise its text could continue as records of its own.
    """
    text = bytearray()
    size = quotes = 0
    while piece := stream.readline(PIECE):
        size += len(piece)
        quotes += piece.count(b'"') if quoted else 0
        if size <= LONGEST:
            text += piece
        if piece.endswith(b"\n") and quotes % 2 == 0:
            if size <= LONGEST:
                yield text.decode(errors="replace")
            else:
                too_long()
            text, size, quotes = bytearray(), 0, 0
    if size > LONGEST:
        too_long()
    elif size:
        yield text.decode(errors="replace")


def _from_json(texts: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Parse one record a line. A rotation may have torn the first or the last one."""
    for text in texts:
        with suppress(ValueError, RecursionError):
            record = json.loads(text)
            if isinstance(record, dict):
                yield record


def _from_csv(texts: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(LONGEST)
    for text in texts:
        with suppress(csv.Error):
            for row in csv.reader([text.replace("\0", "")]):
                if len(row) >= len(COLUMNS):
                    record = dict(zip(COLUMNS, row, strict=False))
                    host = record["connection_from"].rpartition(":")[0] or record["connection_from"]
                    yield {**record, "remote_host": host}


def entries(records: Iterable[Mapping[str, Any]], place: tzinfo = UTC) -> Iterator[Entry]:
    """Make messages of records; what is no record of a server's log is skipped. Pure."""
    for record in records:
        head = HEAD.fullmatch(str(record.get("timestamp", "")))
        with suppress(ValueError):
            if head:
                lines = str(record.get("message", "")).splitlines() or [""]
                for key, label in MORE.items():
                    lines += f"{label}: {record[key]}".splitlines() if record.get(key) else []
                level = str(record.get("error_severity", ""))
                yield Entry(_moment(head, place), int(record.get("pid") or 0), _who(record), level, lines)


def _who(record: Mapping[str, Any]) -> str:
    """Return user@database/application and the client's address; "" for the server's own processes."""
    user, database, application, client = (
        str(record.get(key) or "") for key in ("user", "dbname", "application_name", "remote_host")
    )
    name = f"{user}@{database}/{application}" if user or database else ""
    return f"{name} {client}".strip()


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


def _open(path: Path) -> IO[bytes]:
    stream = os.fdopen(secure_path.open_file(path), "rb")  # postgres may put a link to any file into its directory
    return cast("IO[bytes]", gzip.open(stream, "rb")) if path.suffix == ".gz" else stream
