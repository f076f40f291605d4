"""Requirements of commands that change a host: the user root, and an orderly end on SIGTERM."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from provision.errors import HostError


def require_root(what: str, command: str) -> None:
    """Raise HostError for any user but root; `what` says why, `command` is the one to run with sudo."""
    if os.geteuid() != 0:
        raise HostError(what, seen=f"user id {os.geteuid()}", allowed="root", run=f"sudo {command}")


@contextmanager
def noting(note: Callable[[str], None]) -> Iterator[None]:
    """Tell `note` the name of each SIGINT and SIGTERM, so that long work can end between two steps."""

    def noted(number: int, _frame: object) -> None:
        note(signal.Signals(number).name)

    previous = {number: signal.signal(number, noted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def stoppable() -> Iterator[None]:
    """End this process by SystemExit on SIGTERM, so that every `with` block is left and every program ends."""

    def stopped(number: int, frame: object) -> NoReturn:
        del frame
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
