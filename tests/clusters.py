"""Real PostgreSQL clusters in temporary directories, made of the distribution's packages and stopped at the end.

Does IO. Installs nothing into the system: the server's programs are copied and the rest of its installation is
linked into the cluster's directory, where pgvector is added (PostgreSQL finds its files relative to its programs).
Refuses to run a server as root: root's clusters belong to the user `postgres`. Authentication is `trust`, on
127.0.0.1 and on a socket that only the owner's directory holds.

POSTGRES_BIN names another server's `bin` directory, which must have pgvector: the same tests then run on that one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from tests import pgvector
from tests.until import until

SETTINGS = {
    "fsync": "off",  # a test's cluster need not survive the machine, only its own processes
    "huge_pages": "off",  # whatever the machine reserves for others
    "listen_addresses": "127.0.0.1",
    "log_min_messages": "warning",
    "max_connections": "100",
    "maintenance_work_mem": "256MB",  # an HNSW build over 20,000 vectors stays in memory
    "shared_buffers": "256MB",
    "timezone": "UTC",
}


def as_server_user(*command: str | Path) -> list[str]:
    """Return the command as it must be run: a server refuses root, so root becomes `postgres` (without a fork).

    The kernel interrupts it when we die, however we die: a test run that is killed leaves no server behind.
    """
    become = ["--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *become, "--pdeathsig=INT", *(str(word) for word in command)]


def run(*command: str | Path, text: str | None = None) -> str:
    """Run a program and return its output; a failure shows what the program said."""
    done = subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install(root: Path) -> Path:
    """Lay out a server with pgvector under `root` and return its `bin` directory."""
    if given := os.environ.get("POSTGRES_BIN"):
        return Path(given)
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    assert installed, "no PostgreSQL server: apt-get install $(cat tests/apt.txt)"
    system = installed[-1].parent.parent
    major = system.name
    tree = root / "usr/lib/postgresql" / major
    shutil.copytree(system / "bin", tree / "bin")
    shared = Path("usr/share/postgresql") / major
    link_files(system / "lib", tree / "lib", skip="bitcode")
    link_files(Path("/") / shared, root / shared)
    if not (root / shared / "extension/vector.control").exists():
        shutil.copytree(pgvector.built(major), root, dirs_exist_ok=True)
    return tree / "bin"


def link_files(source: Path, target: Path, skip: str = "") -> None:
    """Make `target` a copy of the folders of `source` whose files are symbolic links."""
    for folder, names, files in os.walk(source, followlinks=True):
        names[:] = [name for name in names if name != skip]
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for name in files:
            (here / name).symlink_to(Path(folder, name))


@dataclass
class Cluster:
    """One running server. `host` is the directory of its socket; `port` serves that socket and 127.0.0.1."""

    bin: Path
    root: Path
    port: int
    superuser: str = "postgres"
    server: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls, settings: dict[str, str] | None = None, server: Path | None = None) -> Cluster:
        """Make and start a cluster of its own; `server` is the `bin` directory of an installed one."""
        root = Path(tempfile.mkdtemp(prefix="provision-cluster-", dir="/tmp"))  # a socket's path must be short
        if os.geteuid() == 0:
            shutil.chown(root, "postgres", "postgres")
        cluster = cls(server or install(root), root, free_port())
        try:
            cluster.initialise(SETTINGS | (settings or {}))
            cluster.start()
        except BaseException:
            cluster.remove()
            raise
        return cluster

    def initialise(self, settings: dict[str, str]) -> None:
        """Make the data directory: UTF-8 whatever the machine's locale is, checksums as on a real host."""
        place = (f"--pgdata={self.data}", f"--username={self.superuser}", "--auth=trust", "--no-sync")
        layout = ("--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8")
        run(*as_server_user(self.bin / "initdb", *place, *layout))
        own = {"port": str(self.port), "unix_socket_directories": self.host}
        with (self.data / "postgresql.conf").open("a") as config:
            config.writelines(f"{name} = '{value}'\n" for name, value in (settings | own).items())

    @property
    def data(self) -> Path:
        """Return the data directory."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """Return the file of the server's messages."""
        return self.root / "log"

    @property
    def host(self) -> str:
        """Return the directory of the socket."""
        return str(self.root)

    def start(self) -> None:
        """Start the server as a child of ours, so that its end is seen at once, and wait until it answers."""
        with self.log.open("a") as log:
            command = as_server_user(self.bin / "postgres", "-D", self.data)
            server = self.server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        assert until(lambda: self.ready() or server.poll() is not None, 60), self.log.read_text()[-4000:]
        assert server.poll() is None, self.log.read_text()[-4000:]

    def ready(self) -> bool:
        """Say whether the server accepts connections."""
        command = [str(self.bin / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server and wait until it is gone: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self.server and self.server.poll() is None:
            self.server.send_signal(how)
            self.server.wait(timeout=60)

    def kill(self) -> None:
        """SIGKILL the server, as a crash would, and wait until its other processes have noticed."""
        self.stop(signal.SIGKILL)
        assert until(lambda: not self.processes(), 10), f"the killed server is still there: {self.processes()}"

    def processes(self) -> list[int]:
        """Return the server's processes: those that work in the data directory."""
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):
                if link.readlink() == self.data:
                    found.append(int(link.parent.name))
        return found

    def remove(self) -> None:
        """Stop the server if it runs and delete all its files."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.root)

    def url(self, database: str = "postgres", user: str = "postgres", **parameters: str) -> str:
        """Return a libpq URL over TCP; parameters such as `options` are added to it."""
        query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
        return f"postgresql://{quote(user)}@127.0.0.1:{self.port}/{quote(database)}{query}"

    def psql(self, sql: str, database: str = "postgres", user: str = "postgres") -> str:
        """Run statements through psql over the socket, stopping at the first error; return bare rows."""
        place = ("-h", self.host, "-p", str(self.port), "-U", user, "-d", database)
        options = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
        return run(self.bin / "psql", *place, *options, "-f", "-", text=sql).strip()
