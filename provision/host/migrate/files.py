"""Names and content of migration files. Pure: takes names and bytes, returns values and problems.

The naming rules are golang-migrate's (source/parse.go): `VERSION_title.up.ext`, in numeric order, 001 == 1.
Anything that golang-migrate silently ignores or runs by accident (a name that nearly matches, a backup copy, a
missing up or down file) becomes a Problem.
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
"""The version of a database without applied migrations."""

LARGEST_VERSION = 2**63 - 1
"""Largest bigint, the type of the version column; golang-migrate accepts up to 2^64 - 1 and overflows."""

BOM = codecs.BOM_UTF8

_NAME = re.compile(r"([0-9]+)_(.*)\.(down|up)\.(.*)")
_NEARLY = re.compile(r"\.(up|down)(\.|$)|^v?[0-9].*\.sql", re.IGNORECASE)


class Severity(Enum):
    """Effect of a problem on a run."""

    ERROR = "error"
    """Always stops the run, as in golang-migrate."""
    REFUSAL = "refusal"
    """Stops the run unless --compatible is given: golang-migrate would continue."""
    WARNING = "warning"
    """Printed only."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with a migration file. `file` may end with `:line:column`."""

    kind: str
    file: str
    seen: str
    fix: str
    severity: Severity = Severity.REFUSAL


@dataclass(frozen=True, slots=True)
class File:
    """One migration file, parsed from its name."""

    name: str
    version: int
    title: str
    direction: Direction
    extension: str


@dataclass(frozen=True, slots=True)
class Pair:
    """The up and down files of one version; None for a missing file."""

    version: int
    up: File | None = None
    down: File | None = None

    @property
    def title(self) -> str:
        """The title in the name of the up file, or of the down file without one."""
        file = self.up or self.down
        return file.title if file else ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All versions of a directory in order, and the problems of its file names."""

    pairs: tuple[Pair, ...] = ()
    problems: tuple[Problem, ...] = ()
    by_version: dict[int, Pair] = field(default_factory=dict)

    @property
    def versions(self) -> list[int]:
        """The versions in numeric order."""
        return [pair.version for pair in self.pairs]


def parse(name: str) -> File | None:
    """Parse a file name as golang-migrate does; None if it is not a migration."""
    match = _NAME.fullmatch(name)
    if match is None or not match[1].isascii():
        return None
    direction: Direction = "up" if match[3] == "up" else "down"
    return File(name, int(match[1]), match[2], direction, match[4])


def arrange(names: Iterable[str]) -> Catalogue:
    """Group file names into pairs. Other names that nearly match are problems, except hidden files."""
    halves: dict[tuple[int, Direction], File] = {}
    problems: list[Problem] = []
    for name in sorted(names):
        file = parse(name)
        if file is None:
            if _NEARLY.search(name) and not name.startswith("."):
                problems.append(_near_miss(name))
            continue
        if file.version > LARGEST_VERSION:
            fix = f"rename it to a version up to {LARGEST_VERSION}"
            problems.append(Problem("version", name, "has a version that does not fit a bigint", fix, Severity.ERROR))
            continue
        if file.extension != "sql":
            seen = f"ends with .{file.extension}, but golang-migrate would run it"
            problems.append(Problem("extension", name, seen, "move it away or rename it to end with .sql"))
        twin = halves.setdefault((file.version, file.direction), file)
        if twin is not file:
            seen = f"has the same version and direction as {twin.name}"
            fix = "rename one of them to a higher version"
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
        "nearly matches a migration name, so it would silently be ignored",
        "rename it to VERSION_title.up.sql or VERSION_title.down.sql (digits, lower case), or move it away",
    )


@dataclass(frozen=True, slots=True)
class Content:
    """Properties of a file's content: SHA-256 in hexadecimal (as sha256sum prints it), size in bytes, problems."""

    checksum: str
    size: int
    problems: tuple[Problem, ...]


class Inspector:
    """Compute the checksum of a file from chunks, and find content that must not run."""

    def __init__(self, name: str) -> None:
        """`name` is the file name in problems."""
        self.name = name
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._nul = self._bom = self._latin = self._crlf = False
        self._last = b""

    def feed(self, piece: bytes) -> None:
        """Process the next chunk; the chunk size does not affect the result."""
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
        """Return the result after the last chunk."""
        self._decode(b"", final=True)
        return Content(self._sha256.hexdigest(), self.size, tuple(self._problems()))

    def _problems(self) -> list[Problem]:
        found = []
        if self._nul:
            seen = "contains a NUL byte, where the server would silently stop reading"
            found.append(Problem("nul", self.name, seen, "remove the byte", Severity.ERROR))
        if self._bom:
            seen = "starts with a byte order mark, which the server reports as a syntax error"
            found.append(Problem("bom", self.name, seen, "save it as UTF-8 without BOM"))
        if self._latin:
            seen = "is not valid UTF-8"
            found.append(Problem("encoding", self.name, seen, "save it as UTF-8 (iconv -f LATIN1 -t UTF-8)"))
        if self._crlf:
            seen = "has CRLF line endings, which remain in string literals and function bodies"
            fix = "save it with LF line endings before it is applied"
            found.append(Problem("crlf", self.name, seen, fix, Severity.WARNING))
        return found
