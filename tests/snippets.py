"""The programs in docs/connect-an-application.md, to be run as they are printed.

Does IO: node-postgres is fetched with npm (from the registry that it is configured for) into .provision/cache.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.caches import locked

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/connect-an-application.md"
NODE_POSTGRES = "pg@8.23.1"
REMEMBERED = "the user prefers tea"


def programs() -> dict[str, str]:
    """Give each program by its section: the first block of code of a driver."""
    sections = re.findall(r"^## (.+?)\n\n```(python|javascript)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return {name: code for name, _, code in sections}


def run(name: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one program in `folder` with these variables and none of ours that name a database."""
    if name == "node-postgres":
        path, words = folder / "remember.mjs", ["node"]
        if not (folder / "node_modules").exists():
            (folder / "node_modules").symlink_to(_node_modules())
    else:
        path, words = folder / "remember.py", [sys.executable]
    path.write_text(programs()[name])
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "DATABASE_URL", "DJANGO"))}
    return subprocess.run(
        [*words, path],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _node_modules() -> Path:
    place = ROOT / ".provision/cache/node-postgres"
    with locked(place):
        if not (place / "node_modules/pg/package.json").exists():
            # npm's own pauses are 70 seconds for each package if the registry refuses it, before it uses its cache.
            patience = ["--prefer-offline", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
            quiet = ["--silent", "--no-fund", "--no-audit"]
            words = ["npm", "install", *quiet, *patience, "--prefix", str(place), NODE_POSTGRES]
            subprocess.run(words, check=True, capture_output=True)
    return place / "node_modules"
