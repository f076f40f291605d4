"""What a migration file is called and what its bytes may hold. Pure: names and bytes in, values and problems out.

The rules for names are golang-migrate's (source/parse.go): `VERSION_title.up.ext`, in numeric order, 001 == 1.
What golang-migrate silently ignores or runs by accident (a name that nearly matches, a backup copy, half a pair)
becomes a Problem here.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

Direction = Literal["up", "down"]

NONE = -1
"""The version of a database to which nothing has been applied."""

LARGEST_VERSION = 2**63 - 1
"""What the version column, a bigint, can hold; golang-migrate reads up to 2^64 - 1 and overflows."""

BOM = codecs.BOM_UTF8

_NAME = re.compile(r"([0-9]+)_(.*)\.(down|up)\.(.*)")
_NEARLY = re.compile(r"\.(up|down)(\.|$)|^v?[0-9].*\.sql", re.IGNORECASE)


class Severity(Enum):
    """What a problem does to a run."""

    ERROR = "error"
    """Always stops it, in golang-migrate too."""
    REFUSAL = "refusal"
    """Stops it, except with --compatible: golang-migrate would go on."""
    WARNING = "warning"
    """Is only said."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about the files that a run must not pass over; `file` may carry `:line`."""

    kind: str
    file: str
    seen: str
    fix: str
    severity: Severity = Severity.REFUSAL


@dataclass(frozen=True, slots=True)
class File:
    """One half of a migration, as its name gives it."""

    name: str
    version: int
    title: str
    direction: Direction
    extension: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Both halves of one version; a missing half is None."""

    version: int
    up: File | None = None
    down: File | None = None

    @property
    def title(self) -> str:
        """Name the version as its files do, the up half first."""
        half = self.up or self.down
        return half.title if half else ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every version of a directory in order, and what is wrong with its names."""

    pairs: tuple[Pair, ...] = ()
    problems: tuple[Problem, ...] = ()
    by_version: dict[int, Pair] = field(default_factory=dict)

    @property
    def versions(self) -> list[int]:
        """The versions in numeric order."""
        return [pair.version for pair in self.pairs]


def parse(name: str) -> File | None:
    """Read a file name as golang-migrate does; None when it is not a migration's."""
    match = _NAME.fullmatch(name)
    if match is None or not match[1].isascii():
        return None
    direction: Direction = "up" if match[3] == "up" else "down"
    return File(name, int(match[1]), match[2], direction, match[4])


def arrange(names: Iterable[str]) -> Catalogue:
    """Sort file names into pairs. Hidden files are left alone, other names that nearly match are problems."""
    halves: dict[tuple[int, Direction], File] = {}
    problems: list[Problem] = []
    for name in sorted(names):
        file = parse(name)
        if file is None:
            if _NEARLY.search(name) and not name.startswith("."):
                problems.append(_near_miss(name))
            continue
        if file.version > LARGEST_VERSION:
            fix = f"versions go up to {LARGEST_VERSION}; rename it"
            problems.append(Problem("version", name, "its version does not fit a bigint", fix, Severity.ERROR))
            continue
        if file.extension != "sql":
            seen = f"ends with .{file.extension}, and golang-migrate would run it all the same"
            problems.append(Problem("extension", name, seen, "move it away, or let it end with .sql"))
        twin = halves.setdefault((file.version, file.direction), file)
        if twin is not file:
            seen = f"has the version and direction of {twin.name}"
            fix = "give one of them a new, higher version"
            problems.append(Problem("duplicate", name, seen, fix, Severity.ERROR))
    pairs = tuple(
        Pair(version, halves.get((version, "up")), halves.get((version, "down")))
        for version in sorted({version for version, _ in halves})
    )
    return Catalogue(pairs, tuple(problems), {pair.version: pair for pair in pairs})


def _near_miss(name: str) -> Problem:
    return Problem(
        "name",
        name,
        "nearly has the name of a migration, so it would silently never run",
        "name it VERSION_title.up.sql or VERSION_title.down.sql (digits, small letters), or move it away",
    )


@dataclass(frozen=True, slots=True)
class Content:
    """What matters of a file's bytes: SHA-256 as 64 hexadecimal digits (what sha256sum prints), length, problems."""

    checksum: str
    size: int
    problems: tuple[Problem, ...]


class Inspector:
    """Read a file's bytes in pieces and keep what matters: the checksum, and what makes it unfit to run."""

    def __init__(self, name: str) -> None:
        """`name` is how problems call the file."""
        self.name = name
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._nul = self._bom = self._latin = self._crlf = False
        self._last = b""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes; pieces of any length give the same answer."""
        if self.size < len(BOM):
            self._bom = self._bom or (self._last + piece).startswith(BOM)
        self._nul = self._nul or b"\0" in piece
        self._crlf = self._crlf or b"\r\n" in self._last[-1:] + piece
        self._last = (self._last + piece)[-2:]
        self.size += len(piece)
        self._sha256.update(piece)
        self._decode(piece, final=False)

    def _decode(self, piece: bytes, *, final: bool) -> None:
        if self._latin:
            return
        try:
            self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            self._latin = True

    def content(self) -> Content:
        """Sum up, after the last piece, also what would keep this file from running as it was meant."""
        self._decode(b"", final=True)
        return Content(self._sha256.hexdigest(), self.size, tuple(self._problems()))

    def _problems(self) -> list[Problem]:
        found = []
        if self._nul:
            seen = "holds a NUL byte, at which the server would silently stop reading"
            found.append(Problem("nul", self.name, seen, "remove the byte", Severity.ERROR))
        if self._bom:
            seen = "starts with a byte order mark, a syntax error to the server"
            found.append(Problem("bom", self.name, seen, "save it as UTF-8 without BOM"))
        if self._latin:
            seen = "is not valid UTF-8"
            found.append(Problem("encoding", self.name, seen, "save it as UTF-8 (iconv -f LATIN1 -t UTF-8)"))
        if self._crlf:
            seen = "has CRLF line ends, which string literals and function bodies keep"
            fix = "save it with LF line ends before it is applied"
            found.append(Problem("crlf", self.name, seen, fix, Severity.WARNING))
        return found
