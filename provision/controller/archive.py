"""Pack the package into one executable file for hosts. Reads the package's folder, writes one file.

The same sources always give the same bytes (fixed times, sorted names), so a second run has nothing to copy.
"""

from __future__ import annotations

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
EARLIEST = (1980, 1, 1, 0, 0, 0)  # zip knows no earlier time


def pack(package: Path, folder: Path) -> Path:
    """Write `folder/HASH/provision` from the Python files and tables of `package` and give its path.

    Raises OSError. What only the controller uses (pyinfra, and the commands that need it) is left out.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", EARLIEST), LAUNCHER)
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.tsv")]):
            if not path.relative_to(package).as_posix().startswith(CONTROLLER):
                name = path.relative_to(package.parent).as_posix()
                archive.writestr(zipfile.ZipInfo(name, EARLIEST), path.read_bytes())
    content = SHEBANG + buffer.getvalue()
    target = folder / hashlib.sha256(content).hexdigest()[:16] / "provision"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{os.getpid()}.new")  # each host of a run has a process of its own
        temporary.write_bytes(content)
        temporary.replace(target)
    return target
