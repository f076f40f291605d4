"""Run pgbench for some seconds and read the latency of every transaction from its log.

Does IO: starts the program. The password is passed in the environment, never on the command line.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import system
from provision.errors import HostError

APPLICATION = "provision bench, pgbench"  # finds its sessions after an interruption
JOBS = 2  # threads of pgbench: more would take CPUs from a server on the same machine


@dataclass(frozen=True)
class Rate:
    """Transactions per second, latencies in ms, and the number of transactions."""

    tps: float
    p50: float
    p95: float
    p99: float
    transactions: int = 0


def program() -> str:
    """Return the path of pgbench: the newest of Debian's server packages, or the one on PATH. Raises HostError."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), key=lambda path: int(path.parts[4]))
    found = str(installed[-1]) if installed else shutil.which("pgbench")
    if found is None:
        raise HostError("pgbench is not installed", run="apt-get install postgresql-contrib")
    return found


@dataclass(frozen=True)
class Pgbench:
    """Target: `environment` from provision.database.environment, `path` for search_path."""

    environment: Mapping[str, str]
    path: str
    seed: int

    def __call__(self, *words: str, settings: Mapping[str, object] | None = None) -> str:
        """Run pgbench with session settings and return its output. Raises HostError with its errors."""
        options = {"search_path": self.path, "statement_timeout": 0, **(settings or {})}
        given = " ".join(f"-c {name}={str(value).replace(' ', '')}" for name, value in options.items())
        inherited = self.environment.get("PGOPTIONS", "")
        own = {"PGOPTIONS": f"{inherited} {given}".strip(), "PGAPPNAME": APPLICATION}
        return system.run(program(), *words, environment={**self.environment, **own}).stdout

    def initialise(self, scale: int) -> None:
        """Make pgbench's own tables, of 100,000 accounts for each unit of scale."""
        self("--initialize", "--quiet", f"--scale={scale}")

    def measure(
        self, seconds: float, clients: int, *words: str, scripts: Mapping[str, int] | None = None, **settings: object
    ) -> Rate:
        """Run a built-in script (`words`) or `scripts` (SQL to weight) and return the overall rate."""
        with tempfile.TemporaryDirectory(prefix="provision-bench-") as folder:
            files = []
            for number, (text, weight) in enumerate((scripts or {}).items()):
                path = Path(folder, f"{number}.sql")
                path.write_text(text)
                files.append(f"--file={path}@{weight}")
            log = Path(folder, "log")
            size = (f"--client={clients}", f"--jobs={min(clients, JOBS)}", f"--time={max(1, round(seconds))}")
            self(
                "--no-vacuum",
                f"--random-seed={self.seed}",
                *size,
                "--log",
                f"--log-prefix={log}",
                *words,
                *files,
                settings=settings,
            )
            taken = [
                int(line.split(" ", 3)[2]) / 1000
                for part in Path(folder).glob("log.*")
                for line in part.read_text().splitlines()
            ]
        if len(taken) < 2:
            raise HostError("too few transactions", seen=str(len(taken)), allowed="a longer --seconds")
        cuts = statistics.quantiles(taken, n=100, method="inclusive")
        return Rate(len(taken) / max(1, round(seconds)), cuts[49], cuts[94], cuts[98], len(taken))


SEARCH = """\\set q random(1, {queries})
SELECT id FROM memories ORDER BY embedding <=> (SELECT embedding FROM queries WHERE id = :q) LIMIT 10;
"""
# Agent workload by weight: read the session, search memories, log an activity, store a memory.
MIXED = {
    """\\set s random(1, {sessions})
SELECT id, status, history, working_memory FROM sessions WHERE id = md5('session' || :s)::uuid;
""": 10,
    """\\set q random(1, {queries})
\\set a random(1, {agents})
SELECT id, content FROM memories WHERE agent_id = md5('agent' || :a)::uuid
ORDER BY embedding <=> (SELECT embedding FROM queries WHERE id = :q) LIMIT 10;
""": 5,
    """\\set a random(1, {agents})
INSERT INTO activities (agent_id, activity_type, duration_ms) VALUES (md5('agent' || :a)::uuid, 'tool_call', 12);
""": 4,
    """\\set q random(1, {queries})
\\set a random(1, {agents})
INSERT INTO memories (agent_id, content, embedding)
SELECT md5('agent' || :a)::uuid, 'a new fact', embedding FROM queries WHERE id = :q;
""": 1,
}
