"""Measure how long clients wait during a major upgrade, beside a dump and restore, on one host.

    python -m benchmarks.upgrade [MEGABYTES [VECTORS]]

The host has Debian 13, PostgreSQL 15 of Debian 12 and pgvector 0.5.1 with the prod profile (tests/older.py) and moves
to Debian 13's 17: by copy, back, and by link. pgbench writes and searches through the pooler with TLS meanwhile. Prints
failed transactions, acknowledged rows that are missing, the longest wait, and the seconds that a dump and restore of
the same database takes on the same host before the upgrades; asserts nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hosts import BIN, ROOT, production_inventory, run
from provision.controller.vault import Vault
from tests import older
from tests.sandboxes import Host, Hosts

NAME = "bench-upgrade"
MEMORY = "4g"
MEGABYTES, VECTORS = 1000, 20_000
DIMENSIONS = 1536
CLIENTS = 8
VARIABLES = {"backup_allow_local_only": True, "backup_repository_inventory_name": "", "backup_repository_host": ""}
FILL = """
INSERT INTO agents (name) VALUES ('bench');
CREATE TEMP TABLE base AS
  SELECT n, (SELECT array_agg(random() + 0 * n * i) FROM generate_series(1, {dimensions}) i)::vector AS v
  FROM generate_series(1, {vectors}) n;
INSERT INTO memories (agent_id, content, embedding) SELECT a.id, 'memory ' || n, v FROM base, agents a;
CREATE TABLE notes AS SELECT n, repeat(md5(n::text) || ' is what was said ', 12) t FROM generate_series(1, {notes}) n;
ALTER TABLE notes ADD PRIMARY KEY (n);
CREATE TABLE written (client int, at timestamptz DEFAULT clock_timestamp());
ALTER TABLE notes OWNER TO minion;
ALTER TABLE written OWNER TO minion;
GRANT SELECT ON notes TO minion_app;
GRANT SELECT, INSERT ON written TO minion_app;
VACUUM ANALYZE;
"""
NOTE_BYTES = 640
SCRIPT = """\\set number random(1, 1000)
BEGIN;
INSERT INTO written (client) VALUES (:client_id);
SELECT t FROM notes WHERE n = :number;
SELECT id FROM memories ORDER BY embedding <=> (SELECT embedding FROM memories LIMIT 1) LIMIT 10;
COMMIT;
\\sleep 50 ms
"""
SCRATCH = "/var/lib/postgresql/bench"
LOAD = f"""
cd $(mktemp -d -p {SCRATCH})
export PGPASSFILE=/var/lib/postgresql/.pgpass PGSSLMODE=verify-full PGSSLROOTCERT=/etc/provision/tls/ca.crt
/usr/lib/postgresql/15/bin/pgbench -n -f {SCRATCH}/script -c {CLIENTS} -j 1 -T 7200 -l \
  -h 127.0.0.1 -p 6432 -U minion_app minion >said 2>&1 || true
awk '/transactions actually processed/ {{print $NF}}' said
grep -c aborted said || true
awk '/number of failed/ {{print $5}}' said
cut -d' ' -f3 pgbench_log.* | sort -n | tail -1
grep -m1 error: said || true
"""
DUMP = f"""
new=/usr/lib/postgresql/17/bin; port="-h {SCRATCH} -p 5999 -U postgres"
$new/initdb -D {SCRATCH}/new -U postgres --encoding=UTF8 --locale=C.UTF-8 --data-checksums >/dev/null
preload=$(psql -XAtc 'SHOW shared_preload_libraries')
$new/pg_ctl -D {SCRATCH}/new -w -l {SCRATCH}/log -o "-p 5999 -c unix_socket_directories={SCRATCH} -c listen_addresses= \
 -c shared_buffers=256MB -c maintenance_work_mem=512MB -c max_wal_size=4GB -c shared_preload_libraries=$preload" \
 start >/dev/null
begun=$(date +%s.%N)
$new/pg_dumpall --globals-only | psql -Xq $port postgres >/dev/null 2>&1
$new/pg_dump -Fd -j2 -Z 1 -f {SCRATCH}/dump minion
dumped=$(date +%s.%N)
$new/pg_restore -e --create -j2 $port -d postgres {SCRATCH}/dump
$new/vacuumdb $port --analyze-only -q minion
echo "$begun $dumped $(date +%s.%N)"
$new/pg_ctl -D {SCRATCH}/new -w -m fast stop >/dev/null
rm -rf {SCRATCH}/dump {SCRATCH}/new
"""


@dataclass
class Subject:
    """The host, its inventory and its variables before and after the upgrade."""

    host: Host
    inventory: Path
    key: Path
    old: dict[str, object]
    timings: dict[str, float] = field(default_factory=dict)

    def play(self, playbook: str, variables: dict[str, object], *more: str) -> str:
        """Run a playbook and return its output."""
        words = (playbook, "-i", str(self.inventory), "-i", str(self.host.inventory), "--limit", self.host.name)
        given = json.dumps({**VARIABLES, **variables})
        return run(str(BIN / "ansible-playbook"), *words, "--vault-password-file", str(self.key), "-e", given, *more)

    def upgrade(self, *more: str) -> str:
        """Run upgrade.yml with the variables of the new major."""
        return self.play("upgrade.yml", dict(older.NEW), *more)

    def words(self, script: str, user: str = "postgres") -> list[str]:
        """Return the command line of a shell script on the host."""
        shell = ("runuser", "-u", user, "--", "bash", "-euo", "pipefail", "-c", script)
        return list(self.host.sandbox.words(self.host.container, *shell))

    def run(self, script: str, user: str = "postgres") -> str:
        """Run a shell script on the host and return its output."""
        return run(*self.words(script, user)).strip()


@dataclass(frozen=True)
class Load:
    """What pgbench counted: transactions, clients that gave up or failed, rows that are missing, the longest wait."""

    transactions: int
    failed: int
    lost: int
    wait_s: float
    said: str


@contextmanager
def subject() -> Iterator[Subject]:
    """Make and converge the host with the old major; remove it at the end."""
    with tempfile.TemporaryDirectory() as folder, production_inventory() as (inventory, key):
        project = Path(folder) / "project"
        project.mkdir()
        with Hosts.made(project) as hosts:
            host = hosts.up(NAME, os="debian13", memory=MEMORY)
            made = Subject(host, inventory, key, older.prepare(host, Path(folder)))
            made.play("site.yml", made.old)
            yield made


def prepare(made: Subject, megabytes: int, vectors: int) -> None:
    """Fill the database, stop all timers, and place the script and the password of the load."""
    passwords = Vault(made.inventory, made.key.read_text()).read()["database_credentials"]
    made.run("systemctl stop 'provision-*.timer'", user="root")
    made.run(f"umask 077; echo '*:*:*:*:{passwords['minion_app']['password']}' >~/.pgpass; mkdir -p {SCRATCH}")
    made.run(f"cat >{SCRATCH}/script <<'END'\n{SCRIPT}END")
    notes = max(1000, (megabytes * 2**20 - vectors * 2 * 8192) // NOTE_BYTES)
    fill = FILL.format(dimensions=DIMENSIONS, vectors=vectors, notes=notes)
    made.run(f"psql -qX -v ON_ERROR_STOP=1 minion <<'SQL'\n{fill}\nSQL")
    made.timings["mb"] = float(made.run("psql -XAtc 'SELECT pg_database_size(current_database()) / 1048576' minion"))


@contextmanager
def loaded(made: Subject, into: list[Load]) -> Iterator[None]:
    """Run pgbench through the pooler for the duration of a `with` block."""
    made.run("psql -qXc 'TRUNCATE written' minion")
    with subprocess.Popen(made.words(LOAD), cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        time.sleep(10)
        try:
            yield
        finally:
            time.sleep(5)
            made.run("pkill -ALRM -x pgbench || true")  # as at the end of -T: every client ends its transaction
            said = running.communicate(timeout=120)[0].split("\n")
    rows = int(made.run("psql -XAtc 'SELECT count(*) FROM written' minion"))
    transactions, aborted, failed, longest = (int(each or 0) for each in said[:4])
    into.append(Load(transactions, aborted + failed, max(0, transactions - rows), longest / 1e6, said[4]))


def moved(made: Subject, method: str) -> tuple[Load, float, dict[str, float]]:
    """Upgrade under load; return what pgbench saw, the seconds of the run and those of each stage."""
    found: list[Load] = []
    begun = time.monotonic()
    with loaded(made, found):
        made.upgrade("-e", "upgrade_to=17", "-e", f"upgrade_method={method}", "-e", f"upgrade_confirm={NAME}")
        took = time.monotonic() - begun
    journal = json.loads(made.run("provision upgrade status --json", user="root"))
    return found[0], took, journal["seconds"]


def main() -> None:
    """Measure and print the table."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES
    vectors = int(sys.argv[2]) if len(sys.argv) > 2 else VECTORS
    with subject() as made:
        prepare(made, megabytes, vectors)
        print(f"database: {made.timings['mb']:.0f} MB, {vectors:,} vectors of {DIMENSIONS} with HNSW", flush=True)
        made.upgrade("-e", "upgrade_to=17")  # installs the programs of 17
        begun, dumped, ended = map(float, made.run(DUMP).split())
        dump = ended - begun
        print(f"dump {dumped - begun:.1f} s, restore and analyse {ended - dumped:.1f} s", flush=True)
        print(f"{'':<8}{'transactions':>14}{'failed':>8}{'lost':>6}{'longest wait s':>16}{'x dump':>8}{'run s':>8}")
        for method in ("copy", "link"):
            seen, took, stages = moved(made, method)
            print(
                f"{method:<8}{seen.transactions:>14}{seen.failed:>8}{seen.lost:>6}{seen.wait_s:>16.1f}"
                f"{seen.wait_s / dump:>8.2f}{took:>8.0f}   {seen.said}"
            )
            print("  " + "; ".join(f"{name} {seconds} s" for name, seconds in stages.items()), flush=True)
            if method == "copy":
                back = ("-e", "upgrade_rollback=yes", "-e", f"upgrade_confirm={NAME}")
                made.upgrade(*back, "-e", "upgrade_confirm_loss=discard")
                made.play("site.yml", made.old)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs at the end")


if __name__ == "__main__":
    main()
