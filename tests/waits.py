"""pgbench through a host's pooler while something else happens: what fails, what is lost, and the longest wait.

Does IO on the host, as postgres. Each transaction of the load inserts a row, reads one and searches by vector.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

CLIENTS = 8
DIMENSIONS = 1536
NOTE_BYTES = 640
SCRATCH = "/var/lib/postgresql/bench"
FILL = """
INSERT INTO agents (name) VALUES ('bench');
CREATE TEMP TABLE kept AS SELECT pg_get_indexdef('memories_embedding_idx'::regclass) AS command;
DROP INDEX memories_embedding_idx;
CREATE TEMP TABLE base AS
  SELECT n, (SELECT array_agg(random() + 0 * n * i) FROM generate_series(1, {dimensions}) i)::vector AS v
  FROM generate_series(1, {vectors}) n;
INSERT INTO memories (agent_id, content, embedding)
  SELECT a.id, 'memory ' || n, v FROM base, agents a WHERE a.name = 'bench';
SET maintenance_work_mem = '512MB';
SELECT command FROM kept \\gexec
CREATE TABLE notes AS SELECT n, repeat(md5(n::text) || ' is what was said ', 12) t FROM generate_series(1, {notes}) n;
ALTER TABLE notes ADD PRIMARY KEY (n);
CREATE TABLE written (client int, at timestamptz DEFAULT clock_timestamp());
ALTER TABLE notes OWNER TO minion;
ALTER TABLE written OWNER TO minion;
GRANT SELECT ON notes TO minion_app;
GRANT SELECT, INSERT ON written TO minion_app;
VACUUM ANALYZE;
"""
SCRIPT = """\\set number random(1, 1000)
BEGIN;
INSERT INTO written (client) VALUES (:client_id);
SELECT t FROM notes WHERE n = :number;
SELECT id FROM memories ORDER BY embedding <=> (SELECT embedding FROM memories LIMIT 1) LIMIT 10;
COMMIT;
\\sleep 50 ms
"""
LOAD = """
cd $(mktemp -d -p {scratch})
export PGPASSFILE=/var/lib/postgresql/.pgpass {options}
$(ls /usr/lib/postgresql/*/bin/pgbench | head -1) -n -f {scratch}/script -c {clients} -j 1 -T 7200 -l \
  -h 127.0.0.1 -p 6432 -U minion_app minion >said 2>&1 || true
awk '/transactions actually processed/ {{print $NF}}' said
grep -c aborted said || true
awk '/number of failed/ {{failed = $5}} END {{print failed + 0}}' said  # pgbench 14 counts aborted clients only
cut -d' ' -f3 pgbench_log.* | sort -n | tail -1
grep -m1 error: said || true
"""


@dataclass(frozen=True)
class Load:
    """What pgbench counted: transactions, those that failed, acknowledged rows that are missing, the longest wait."""

    transactions: int
    failed: int
    lost: int
    wait_s: float
    said: str
    """The first error, "" without one."""


@dataclass(frozen=True)
class Pooler:
    """A host's pooler: how to run a shell script there as postgres, minion_app's password, and libpq's environment."""

    words: Callable[[str], list[str]]
    password: str
    options: str = ""

    def run(self, script: str) -> str:
        """Run a script on the host and return its output."""
        done = subprocess.run(self.words(script), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def fill(self, megabytes: int, vectors: int) -> int:
        """Fill the database, prepare the load, and return the database's size in MB."""
        self.run(f"umask 077; echo '*:*:*:*:{self.password}' >~/.pgpass; mkdir -p {SCRATCH}")
        self.run(f"cat >{SCRATCH}/script <<'END'\n{SCRIPT}END")
        notes = max(1000, (megabytes * 2**20 - vectors * 2 * 8192) // NOTE_BYTES)
        fill = FILL.format(dimensions=DIMENSIONS, vectors=vectors, notes=notes)
        self.run(f"psql -qX -v ON_ERROR_STOP=1 minion <<'SQL'\n{fill}\nSQL")
        return int(self.run("psql -XAtc 'SELECT pg_database_size(current_database()) / 1048576' minion"))

    @contextmanager
    def loaded(self, into: list[Load]) -> Iterator[None]:
        """Run pgbench for the duration of a `with` block, and add what it counted to a list."""
        self.run("psql -qXc 'TRUNCATE written' minion")
        script = LOAD.format(scratch=SCRATCH, clients=CLIENTS, options=self.options)
        with subprocess.Popen(self.words(script), stdout=subprocess.PIPE, text=True) as running:
            time.sleep(10)
            try:
                yield
            finally:
                time.sleep(5)
                self.run("pkill -ALRM -x pgbench || true")  # as at the end of -T: each client ends its transaction
                said = [*running.communicate(timeout=300)[0].split("\n"), *[""] * 5]
        rows = int(self.run("psql -XAtc 'SELECT count(*) FROM written' minion"))
        transactions, aborted, failed, longest = (int(each or 0) for each in said[:4])
        into.append(Load(transactions, aborted + failed, max(0, transactions - rows), longest / 1e6, said[4]))
