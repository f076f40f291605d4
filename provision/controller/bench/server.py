"""A cluster of the benchmark's own beside a real server: its programs, a private socket, no network. Does IO."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from provision.errors import DatabaseError
from provision.host import scratch_server

APART = {
    **{name: value for name, value in scratch_server.OVERRIDES.items() if name != "autovacuum"},
    "ssl": "off",
    "synchronous_standby_names": "",
}
"""Settings that keep it away from the real server, whatever its drop-in has."""


class Server:
    """A cluster in a directory of scratch_server's; it belongs to postgres where this process is root."""

    port = scratch_server.PORT

    def __init__(self, programs: Path, root: Path) -> None:
        """Take an initialised directory."""
        self.programs, self.root = programs, root
        self._running = ExitStack()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    def url(self) -> str:
        """Return the superuser's key=value string of database postgres."""
        return scratch_server.url(self.root)

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises DatabaseError with the log's reason."""
        words = [f"--{name}={value}" for name, value in {**APART, "unix_socket_directories": str(self.root)}.items()]
        ready, log = self._running.enter_context(scratch_server.serving(self.programs, self.root, *words))
        if not ready:
            self.stop()
            raise DatabaseError(
                "the server does not start with these settings", where=str(self.data), seen=scratch_server.reason(log)
            )

    def stop(self) -> None:
        """Stop the server."""
        self._running.close()


@contextmanager
def served(programs: Path, place: Path | None) -> Iterator[Server]:
    """Make a cluster in a folder of the server's user; its server is stopped. Remove it at the end.

    Raises HostError, DatabaseError.
    """
    layout = ("--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8")
    with scratch_server.directory(programs, *layout, place=place) as root:
        server = Server(programs, root)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def unaffected() -> Iterator[None]:
    """Hide this process's PG* variables: a PGSERVICE has precedence over the PGHOST that pgbench gets."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(hidden)
