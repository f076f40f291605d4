"""The project as a user has it: every tracked file, in a directory of its own, with this run's virtual environment."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.system.playbooks import ROOT


def tracked() -> list[str]:
    """Name every file that a clone would have, as it is in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def clone(folder: Path) -> Path:
    """Copy the tracked files, with their times, so that make finds the environment up to date; link the environment."""
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def archive() -> bytes:
    """Pack the tracked files, for a host that is to have them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        for name in tracked():
            packed.add(ROOT / name, name)
    return buffer.getvalue()
