"""Make the package `provision` importable for plugins: installed, or at the root of this collection or checkout."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The root of the collection or checkout."""

try:
    import provision  # noqa: F401
except ImportError:
    sys.path.insert(0, str(ROOT))
