"""Measure how long clients wait during a major upgrade, beside a dump and restore, on one host.

    python -m benchmarks.upgrade [MEGABYTES [VECTORS]]

The host has Debian 13, PostgreSQL 15 of Debian 12 and pgvector 0.5.1 with the prod profile (tests/pairs.py) and moves
to Debian 13's 17: by logical replication and by copy, each time back, and by link. pgbench writes and searches through
the pooler with TLS meanwhile. Prints failed transactions, acknowledged rows that are missing, the longest wait, and the
seconds that a dump and restore of the same database takes on the same host before the upgrades; asserts nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hosts import BIN, production_inventory, run
from provision.controller.vault import Vault
from tests.pairs import FIFTEEN, Variables
from tests.sandboxes import Host, Hosts
from tests.waits import DIMENSIONS, SCRATCH, Load, Pooler

NAME = "bench-upgrade"
MEMORY = "4g"
MEGABYTES, VECTORS = 1000, 20_000
TLS = "PGSSLMODE=verify-full PGSSLROOTCERT=/etc/provision/tls/ca.crt"
VARIABLES = {
    "backup_allow_local_only": True, "backup_repository_inventory_name": "", "backup_repository_host": "",
    "postgresql_settings": {"wal_level": "logical"},
}  # fmt: skip
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
    old: Variables
    new: Variables

    def play(self, playbook: str, variables: Variables, *more: str) -> str:
        """Run a playbook and return its output."""
        words = (playbook, "-i", str(self.inventory), "-i", str(self.host.inventory), "--limit", self.host.name)
        given = json.dumps({**VARIABLES, **variables})
        return run(str(BIN / "ansible-playbook"), *words, "--vault-password-file", str(self.key), "-e", given, *more)

    def upgrade(self, *more: str) -> str:
        """Run upgrade.yml with the variables of the new major."""
        return self.play("upgrade.yml", self.new, *more)

    def words(self, script: str, user: str = "postgres") -> list[str]:
        """Return the command line of a shell script on the host."""
        shell = ("runuser", "-u", user, "--", "bash", "-euo", "pipefail", "-c", script)
        return list(self.host.sandbox.words(self.host.container, *shell))

    def run(self, script: str, user: str = "postgres") -> str:
        """Run a shell script on the host and return its output."""
        return run(*self.words(script, user)).strip()


@contextmanager
def subject() -> Iterator[Subject]:
    """Make and converge the host with the old major; remove it at the end."""
    with tempfile.TemporaryDirectory() as folder, production_inventory() as (inventory, key):
        project = Path(folder) / "project"
        project.mkdir()
        with Hosts.made(project) as hosts:
            host = hosts.up(NAME, os="debian13", memory=MEMORY)
            made = Subject(host, inventory, key, *FIFTEEN.variables(host, Path(folder)))
            made.play("site.yml", made.old)
            yield made


def pooler(made: Subject) -> Pooler:
    """Stop all timers, and return the pooler with the application's password."""
    passwords = Vault(made.inventory, made.key.read_text()).read()["database_credentials"]
    made.run("systemctl stop 'provision-*.timer'", user="root")
    return Pooler(made.words, passwords["minion_app"]["password"], TLS)


def moved(made: Subject, place: Pooler, method: str) -> tuple[Load, float, dict[str, float]]:
    """Upgrade under load; return what pgbench saw, the seconds of the run and those of each stage."""
    found: list[Load] = []
    begun = time.monotonic()
    with place.loaded(found):
        made.upgrade("-e", "upgrade_to=17", "-e", f"upgrade_method={method}", "-e", f"upgrade_confirm={NAME}")
        took = time.monotonic() - begun
    journal = json.loads(made.run("provision upgrade status --json", user="root"))
    return found[0], took, journal["seconds"]


def main() -> None:
    """Measure and print the table."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES
    vectors = int(sys.argv[2]) if len(sys.argv) > 2 else VECTORS
    with subject() as made:
        place = pooler(made)
        size = place.fill(megabytes, vectors)
        print(f"database: {size} MB, {vectors:,} vectors of {DIMENSIONS} with HNSW", flush=True)
        made.upgrade("-e", "upgrade_to=17")  # installs the programs of 17
        begun, dumped, ended = map(float, made.run(DUMP).split())
        dump = ended - begun
        print(f"dump {dumped - begun:.1f} s, restore and analyse {ended - dumped:.1f} s", flush=True)
        print(f"{'':<8}{'transactions':>14}{'failed':>8}{'lost':>6}{'longest wait s':>16}{'x dump':>8}{'run s':>8}")
        for method in ("logical", "copy", "link"):
            seen, took, stages = moved(made, place, method)
            print(
                f"{method:<8}{seen.transactions:>14}{seen.failed:>8}{seen.lost:>6}{seen.wait_s:>16.1f}"
                f"{seen.wait_s / dump:>8.2f}{took:>8.0f}   {seen.said}"
            )
            print("  " + "; ".join(f"{name} {seconds} s" for name, seconds in stages.items()), flush=True)
            if method != "link":
                loss = ("-e", "upgrade_confirm_loss=discard") if method == "copy" else ()
                made.upgrade("-e", "upgrade_rollback=yes", "-e", f"upgrade_confirm={NAME}", *loss)
                made.play("site.yml", made.old)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs at the end")


if __name__ == "__main__":
    main()
