"""Pack the package into one executable file for hosts. Reads the package's folder, writes one file.

The same sources always give the same bytes (fixed times, sorted names), so a second run has nothing to copy.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import zipfile
from pathlib import Path

SHEBANG = b"#!/usr/bin/python3\n"
LAUNCHER = "from provision.cli import main\nmain()\n"
CONTROLLER = (
    "controller/",
    *(
        f"cli/{name}.py"
        for name in ("sandbox", "bootstrap", "bundle", "bench", "secrets", "audit", "vagrant", "_narration")
    ),
)
"""What only the controller uses, relative to the package."""
PACKED = ("py", "tsv", "1")
"""Endings of the files that the command reads."""
EARLIEST = (1980, 1, 1, 0, 0, 0)  # zip knows no earlier time


@functools.cache
def content(package: Path) -> bytes:
    """Return the executable file made from the Python files of `package`, without what only the controller uses.

    Packed once in a process: call it before Ansible forks, and the worker of every host has the result.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", EARLIEST), LAUNCHER)
        for path in sorted([path for ending in PACKED for path in package.rglob(f"*.{ending}")]):
            if not path.relative_to(package).as_posix().startswith(CONTROLLER):
                name = path.relative_to(package.parent).as_posix()
                archive.writestr(zipfile.ZipInfo(name, EARLIEST), path.read_bytes())
    return SHEBANG + buffer.getvalue()


def pack(package: Path, folder: Path) -> tuple[Path, str]:
    """Write `folder/HASH/provision` from `content`; return its path and the whole SHA-256. Raises OSError."""
    packed = content(package)
    digest = hashlib.sha256(packed).hexdigest()
    target = folder / digest[:16] / "provision"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{os.getpid()}.new")  # each host of a run has a process of its own
        temporary.write_bytes(packed)
        temporary.replace(target)
    return target, digest
