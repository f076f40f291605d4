"""Refuses to begin without the variables of the pair that needs a mirror."""

from __future__ import annotations

import pytest

from tests.majors.test_pairs import PAIRS
from tests.pairs import FOURTEEN, Pair
from tests.pg14 import mirror


def pytest_collection_finish(session: pytest.Session) -> None:
    """Name the variables that the selected tests lack."""
    if FOURTEEN in {_pair(item) for item in session.items}:
        others = " or ".join(str(each) for each in PAIRS if each is not FOURTEEN)
        mirror.require(f"without them, only another pair can be tested: pytest tests/majors -k {others}")


def _pair(item: pytest.Item) -> Pair | None:
    found = item.callspec.params.get("upgraded") if isinstance(item, pytest.Function) else None
    return found if isinstance(found, Pair) else None
