"""Build and install the collection for tests, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GALAXY = str(Path(sys.executable).with_name("ansible-galaxy"))


def build(folder: Path) -> Path:
    """Build the tarball into a folder and give its path."""
    words = [GALAXY, "collection", "build", "--force", "--output-path", str(folder)]
    subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    (tarball,) = folder.glob("minion-provision-*.tar.gz")
    return tarball


def install(tarball: Path, folder: Path) -> Path:
    """Install the tarball below a folder and give the root of the installed collection.

    The settings of this tree are not read: `make` names its ansible.cfg, with which Galaxy finds the tree itself.
    """
    words = [GALAXY, "collection", "install", str(tarball), "-p", str(folder), "--offline"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    subprocess.run(words, cwd=tarball.parent, env=environment, capture_output=True, text=True, check=True)
    return folder / "ansible_collections/minion/provision"
