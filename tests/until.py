"""Waiting in tests: look again and again until something is true, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_S = 0.05


def until(look: Callable[[], T], seconds: float) -> T:
    """Look until the answer is true or the time has passed, and return the last answer.

    The caller asserts, and says what to show: `assert until(members.complete, 30), members.view()`.
    """
    end = time.monotonic() + seconds
    while not (answer := look()) and time.monotonic() < end:
        time.sleep(PAUSE_S)
    return answer
