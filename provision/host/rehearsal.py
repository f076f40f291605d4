"""Test a server configuration by starting a scratch instance with it. Does IO.

`postgres -C` and pg_file_settings do not find everything that prevents a start: a missing preload library, unavailable
huge pages, an invalid line in pg_hba.conf. The scratch instance listens on no network, archives nothing and uses little
memory. Its data directory is temporary and always removed; it never opens the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from provision.errors import DatabaseError
from provision.host import scratch_server

# Two starts. One has the real shared_buffers but no huge pages, since untouched memory costs nothing. The other has the
# real huge_pages but little memory, because the running server holds the reserved pages.
MEMORY: tuple[dict[str, str], ...] = ({"huge_pages": "off"}, {"shared_buffers": "16MB"})
# For a start that is used: fast, and without workers of extensions, which would keep a database from being dropped.
ALONE = {"huge_pages": "off", "shared_buffers": "64MB", "fsync": "off", "max_worker_processes": "0"}


def rehearse(programs: Path, configuration: Path, use: Callable[[Path], None] | None = None) -> None:
    """Start and stop a scratch server with the files in `configuration`, using the server binaries in `programs`.

    `use` gets the directory of one more start, which holds its socket, while no worker of an extension is connected.
    Raises DatabaseError with the server's log messages if it does not start.
    """
    with scratch_server.directory(programs) as scratch:
        for memory in MEMORY:
            _start(programs, configuration, scratch, memory)
        if use:
            _start(programs, configuration, scratch, ALONE, use)


def _start(
    programs: Path,
    configuration: Path,
    scratch: Path,
    memory: dict[str, str],
    use: Callable[[Path], None] = lambda _scratch: None,
) -> None:
    places = {"data_directory": str(scratch / "data"), "unix_socket_directories": str(scratch)}
    words = [f"--config_file={configuration / 'postgresql.conf'}", *scratch_server.options({**memory, **places})]
    with scratch_server.serving(programs, scratch, *words) as (ready, log):
        # The server starts with an invalid pg_ident.conf and only logs the error, so the log decides.
        if not ready or "of configuration file" in log:
            raise DatabaseError(
                "the server does not start with this configuration",
                where=str(configuration),
                seen=scratch_server.reason(log),
                allowed="a valid configuration; the running server was not changed",
                run="fix the variable, then run the playbook again",
            )
        use(scratch)
