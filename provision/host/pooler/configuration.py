"""Parser of PgBouncer's configuration files, including `%include`. Reads files only.

Supports the part of pgbouncer.ini(5) that our templates use: `%include` within sections; the last value wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from provision import secure_path

SECTION = "pgbouncer"
MOST_INCLUDES = 10
"""Depth of `%include`: the server's user can write a file that includes itself."""


def settings(path: Path) -> dict[str, str]:
    """Return the values of section [pgbouncer]. Raises OSError for an unreadable file."""
    found: dict[str, str] = {}
    section = ""
    for line in _lines(path):
        if line.startswith("["):
            section = line.strip("[]")
        elif section == SECTION and "=" in line:
            key, _, value = line.partition("=")
            found[key.strip()] = value.strip()
    return found


def databases(path: Path) -> list[str]:
    """Return the database names of section [databases]."""
    return [line.partition("=")[0].strip().strip('"') for line in databases_text(path)]


def databases_text(path: Path) -> list[str]:
    """Return the lines of section [databases]."""
    found, section = [], ""
    for line in _lines(path):
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "databases":
            found.append(line)
    return found


def _lines(path: Path, depth: int = 0) -> Iterator[str]:
    """Yield the lines of a file and of those that it includes."""
    if depth > MOST_INCLUDES:
        return
    for line in secure_path.text(path).splitlines():
        text = line.strip()
        if text.startswith("%include"):
            yield from _lines(path.parent / text.split(maxsplit=1)[1], depth + 1)
        elif text and text[0] not in ";#":
            yield text
