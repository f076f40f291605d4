"""Waiting in tests: look again and again until something is true, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAUSE_S, LONGEST_S = 0.05, 1.0


def until(look: Callable[[], T], seconds: float) -> T:
    """Look until the answer is true or the time has passed, and return the last answer.

    A look that takes long, such as a command on a host, is repeated less often: the pause is as long, up to a second.
    The caller asserts, and says what to show: `assert until(members.complete, 30), members.view()`.
    """
    end = time.monotonic() + seconds
    begun = time.monotonic()
    while not (answer := look()) and (now := time.monotonic()) < end:
        time.sleep(min(max(PAUSE_S, now - begun), LONGEST_S))
        begun = time.monotonic()
    return answer
