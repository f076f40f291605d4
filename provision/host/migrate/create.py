"""Make the two files of a new migration. Does IO; never overwrites."""

from __future__ import annotations

import re
import time
from pathlib import Path

from provision.errors import MigrationError, UsageError
from provision.host.migrate.directory import Directory
from provision.host.migrate.files import LARGEST_VERSION

TIMESTAMP_DIGITS = 14
"""Digits of golang-migrate's default versions (20060102150405)."""

DIGITS = 3
"""Digits of a sequence that begins: 001."""

_UP = """\
-- Why:   {words}.
-- Locks: which tables, in which mode, for how long (provision migrate plan says it).
-- Undo:  {down}

"""
_DOWN = """\
-- Undoes {up}; say here what is lost.

"""


def create(path: Path, name: str) -> tuple[Path, Path]:
    """Write NNN_name.up.sql and NNN_name.down.sql, numbered as the directory's files are. Raises UsageError."""
    title = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not title:
        raise UsageError("not a name", seen=name, allowed="small letters, digits and _, as in add_memory_index")
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
            "there is no number above the last migration's",
            where=str(path),
            seen=str(highest),
            allowed=f"versions up to {LARGEST_VERSION}, which the version table can hold",
            run="rename the last migration, if it has not been applied",
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
