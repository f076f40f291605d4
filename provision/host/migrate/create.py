"""Create the two files of a new migration. Does IO; never overwrites a file."""

from __future__ import annotations

import re
import time
from pathlib import Path

from provision.errors import MigrationError, UsageError
from provision.host.migrate.directory import Directory
from provision.host.migrate.files import LARGEST_VERSION

TIMESTAMP_DIGITS = 14
"""Digits of golang-migrate's default timestamp versions (20060102150405)."""

DIGITS = 3
"""Digits of the first version in an empty directory: 001."""

_UP = """\
-- Why:   {words}.
-- Locks: tables, lock modes and duration (see provision migrate plan).
-- Undo:  {down}

"""
_DOWN = """\
-- Reverts {up}. State here which data is lost.

"""


def create(path: Path, name: str) -> tuple[Path, Path]:
    """Write NNN_name.up.sql and NNN_name.down.sql with the next version in the directory's numbering style.

    Raises UsageError for an unusable name or when no higher version exists, MigrationError when a write fails.
    """
    title = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not title:
        raise UsageError(
            "invalid migration name", seen=name, allowed="lower-case letters, digits and _, such as add_memory_index"
        )
    path.mkdir(parents=True, exist_ok=True)
    catalogue = Directory(path).catalogue()
    last = catalogue.pairs[-1] if catalogue.pairs else None
    newest = (last.up or last.down) if last else None
    digits = len(newest.name.partition("_")[0]) if newest else DIGITS
    highest = last.version if last else 0
    if digits == TIMESTAMP_DIGITS:
        highest = max(highest, int(time.strftime("%Y%m%d%H%M%S", time.gmtime())) - 1)
    if highest >= LARGEST_VERSION:
        raise UsageError(
            "no version number is left above the last migration",
            where=str(path),
            seen=str(highest),
            allowed=f"versions up to {LARGEST_VERSION}, the largest bigint",
            run="rename the last migration if it has not been applied yet",
        )
    stem = f"{highest + 1:0{digits}d}_{title}"
    up, down = path / f"{stem}.up.sql", path / f"{stem}.down.sql"
    try:
        with up.open("x") as stream:
            stream.write(_UP.format(words=title.replace("_", " "), down=down.name))
        with down.open("x") as stream:
            stream.write(_DOWN.format(up=up.name))
    except OSError as error:
        raise MigrationError("cannot write the new migration", where=str(path), seen=str(error)) from None
    return up, down
