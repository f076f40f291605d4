"""End a session that runs another role's code and lasts too long. Does IO.

A function can catch the cancellation of its statement (query_canceled) and run on, so no time limit of the session
bounds it. Only the end of the session does, which another session of the same role may order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from provision.database import Connection, ask, connect_pinned
from provision.errors import ProvisionError


@contextmanager
def ended(url: str, session: Connection, seconds: float, *, application: str) -> Iterator[None]:
    """End `session` with a second one at `url` if the block lasts longer; its next statement then fails."""
    pid = session.info.backend_pid

    def end() -> None:
        with suppress(ProvisionError), connect_pinned(url, application=application) as other:
            ask(other, "SELECT pg_terminate_backend(%s)", (pid,))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
