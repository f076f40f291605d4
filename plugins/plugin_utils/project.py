"""Make plugins import the package `provision` of this collection or checkout, even where another is installed."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The root of the collection or checkout."""

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
