"""Make the package `provision` importable for plugins: installed beside Ansible, or part of this collection."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
try:
    import provision
except ImportError:
    sys.path.insert(0, str(ROOT))
    import provision  # noqa: F401 - proves that it is there
