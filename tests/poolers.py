"""PgBouncer on this machine, before a test's own server. Does IO: writes its files, runs it, and ends it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clusters import as_server_user, free_port
from tests.until import until


@dataclass(frozen=True)
class Pooler:
    """A PgBouncer that runs: its port of 127.0.0.1 and its process."""

    port: int
    process: subprocess.Popen[bytes]


@contextmanager
def running(
    folder: Path, databases: Mapping[str, str], users: Mapping[str, str], **settings: str | int
) -> Iterator[Pooler]:
    """Run PgBouncer for the duration of a `with` block.

    `databases` gives connection strings by the name that clients use, `users` passwords or verifiers by login role, and
    `settings` lines of [pgbouncer]. Without users, the settings say how to find them. The user `postgres` must be able
    to read the folder.
    """
    program = shutil.which("pgbouncer", path=f"/usr/sbin:{os.environ['PATH']}")
    assert program, "no PgBouncer: apt-get install $(cat tests/apt.txt)"
    config, auth, log = (folder / name for name in ("pgbouncer.ini", "users.txt", "pgbouncer.log"))
    chosen: dict[str, str | int] = {"listen_addr": "127.0.0.1", "listen_port": free_port(), "unix_socket_dir": ""}
    if users:
        auth.write_text("".join(f'"{name}" "{secret}"\n' for name, secret in users.items()))
        auth.chmod(0o644)
        chosen["auth_file"] = str(auth)
    chosen.update(settings)
    lines = {"databases": databases, "pgbouncer": chosen}.items()
    text = "".join(f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in each.items()) for name, each in lines)
    config.write_text(text)
    config.chmod(0o644)
    with log.open("w") as output:
        process = subprocess.Popen(as_server_user(program, config), stdout=output, stderr=output)
    try:
        assert until(lambda: "process up" in log.read_text() or process.poll() is not None, 10), log.read_text()
        assert process.poll() is None, log.read_text()
        yield Pooler(int(chosen["listen_port"]), process)
    finally:
        process.terminate()
        process.wait(10)
