"""Time pgBackRest against pg_basebackup and pg_dump on one database with vectors, in one run, on one fresh host.

    python -m benchmarks.backup [MEGABYTES]

Prints seconds, sizes and ratios to the tar with zstd, and asserts nothing. The host is converged by site.yml with the
prod profile and a repository on itself, so no network is measured. The vectors are 1,536 random numbers each, which
nothing compresses, beside text, which compresses well; HNSW indexes are left out, for building them takes longer than
all the rest.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from pathlib import Path

from provision.secrets import new_password, new_salt

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
HOST = "bench-backup"
MEGABYTES = 2200
VECTOR_SHARE = 0.7  # of the database; 6,164 bytes each
DATA = "/var/lib/postgresql/17/main"
SCRATCH = "/var/lib/postgresql/bench"
FILL = """
DROP INDEX memories_embedding_idx;
INSERT INTO agents (name) VALUES ('bench');
CREATE TEMP TABLE base AS
  SELECT n, (SELECT array_agg(random() + 0 * n * i) FROM generate_series(1, 1536) i)::vector AS v
  FROM generate_series(1, 4000) n;
INSERT INTO memories (agent_id, content, embedding)
  SELECT a.id, 'memory ' || g || '/' || n, v FROM generate_series(1, {times}) g, base, agents a;
CREATE TABLE notes AS SELECT n, repeat(md5(n::text) || ' is what was said ', 12) t FROM generate_series(1, {notes}) n;
CHECKPOINT;
"""


def run(*words: str) -> str:
    """Run a command in the repository and give what it printed; its failure ends the benchmark."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)[:300]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def host(command: str) -> str:
    """Run a shell command as postgres on the host."""
    words = ("sandbox", "exec", HOST, "--", "runuser", "-u", "postgres", "--", "bash", "-euo", "pipefail", "-c")
    return run(str(BIN / "provision"), *words, command)


def timed(command: str) -> float:
    """Give the seconds that a command takes on the host, after its page cache has been written out."""
    host("sync")
    begun = time.monotonic()
    host(command)
    return time.monotonic() - begun


def size(path: str) -> int:
    """Give a path's size in MB."""
    return int(host(f"du -sm {path} | cut -f1"))


def converge() -> None:
    """Make the host."""
    run(str(BIN / "provision"), "sandbox", "up", HOST, "--os", "debian13", "--memory", "4g")
    values = {
        "backup_repository_passphrase": secrets.token_urlsafe(24),
        "backup_allow_local_only": True,
        "backup_repository_inventory_name": "",
        "backup_repository_host": "",
        "database_credentials": {"minion": {"password": new_password(), "salt": new_salt()}},
    }
    inventories = ("-i", "inventories/prod", "-i", ".provision/sandbox/inventory.yml")
    run(str(BIN / "ansible-playbook"), "site.yml", *inventories, "--limit", HOST, "-e", json.dumps(values))
    run(str(BIN / "provision"), "sandbox", "exec", HOST, "--", "sh", "-c",
        "systemctl stop 'provision-*.timer'; "
        "sed -i '1i local replication postgres peer' /etc/postgresql/17/main/pg_hba.conf; "
        "systemctl reload postgresql@17-main; apt-get -qy install --no-install-recommends zstd")  # fmt: skip


def main() -> None:
    """Run everything once and print the table."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES
    converge()
    try:
        vectors = int(megabytes * VECTOR_SHARE * 2**20 / 8192)  # one chunk of TOAST fills most of a page
        fill = FILL.format(times=max(1, vectors // 4000), notes=int(megabytes * (1 - VECTOR_SHARE) * 2**20 / 640))
        host(f"psql -qX -v ON_ERROR_STOP=1 minion <<'SQL'\n{fill}\nSQL")
        host("while systemctl is-active 'provision-backup@*' | grep -q activ; do sleep 0.5; done")
        shown = host("psql -XAtc 'SELECT pg_size_pretty(pg_database_size(current_database()))' minion").strip()
        print(f"database: {shown}")
        table()
    finally:
        run(str(BIN / "provision"), "sandbox", "down", HOST)


def table() -> None:
    """Measure and print."""
    rows: list[tuple[str, float, int, float]] = []
    new = f"rm -rf {SCRATCH}/new && mkdir -p -m 700 {SCRATCH}/new"
    host(f"mkdir -p {SCRATCH}")
    took = timed(f"pg_basebackup -D {SCRATCH}/tar -Ft --compress=client-zstd:3 -X fetch -c fast")
    back = timed(f"{new} && zstd -dc {SCRATCH}/tar/base.tar.zst | tar -x -C {SCRATCH}/new && sync -f {SCRATCH}/new")
    rows.append(("pg_basebackup tar, zstd:3", took, size(f"{SCRATCH}/tar"), back))
    host(f"rm -rf {SCRATCH}/tar")
    took = timed(f"pg_basebackup -D {SCRATCH}/plain -X fetch -c fast")
    rows.append(
        (
            "pg_basebackup plain",
            took,
            size(f"{SCRATCH}/plain"),
            timed(f"{new} && cp -a {SCRATCH}/plain/. {SCRATCH}/new/ && sync -f {SCRATCH}/new"),
        )
    )
    host(f"rm -rf {SCRATCH}/plain")
    rest = f"pgbackrest --stanza={HOST}"
    took = timed(f"{rest} --type=full backup")
    there = f"--pg1-path={SCRATCH}/new --archive-mode=off"
    back = timed(f"{new} && {rest} {there} restore")
    rows.append(("pgBackRest full (zstd:3, AES)", took, size("/var/lib/pgbackrest/backup/*/latest/"), back))
    host(f"cd {SCRATCH}/new/base && f=$(find . -type f -size +50M | sort | head -1) && rm $f && cd .. && rm -rf global")
    big = f"find {SCRATCH}/new/base -type f -size +20M | head -2"
    host(f"for f in $({big}); do printf X | dd of=$f bs=1 seek=9000 conv=notrunc status=none; done")
    delta = timed(f"{rest} {there} --delta restore")
    host("psql -qX -c \"UPDATE notes SET t = t || 'x' WHERE n % 50 = 0; CHECKPOINT\" minion")
    took = timed(f"{rest} --type=diff backup")
    rows.append(
        ("pgBackRest diff after 2 % of notes, delta restore", took, size("/var/lib/pgbackrest/backup/*/latest/"), delta)
    )
    for name, words in (
        ("pg_dump -Fc, gzip", "-Fc"),
        ("pg_dump -Fc, zstd:3", "-Fc -Z zstd:3"),
        ("pg_dump -Fd -j2, zstd:3", "-Fd -j2 -Z zstd:3"),
    ):
        host(f"rm -rf {SCRATCH}/new")
        took = timed(f"pg_dump {words} -f {SCRATCH}/dump minion")
        jobs = "-j2"
        host("dropdb --if-exists again && createdb again")
        back = timed(f"PGOPTIONS='-c maintenance_work_mem=512MB' pg_restore -e {jobs} -d again {SCRATCH}/dump")
        rows.append((name, took, size(f"{SCRATCH}/dump"), back))
        host(f"rm -rf {SCRATCH}/dump && dropdb again")
    base = rows[0]
    print(f"{'':<52}{'take s':>8}{'x tar':>7}{'MB':>7}{'restore s':>11}{'x tar':>7}")
    for name, took, megabytes, back in rows:
        print(f"{name:<52}{took:>8.1f}{took / base[1]:>7.2f}{megabytes:>7}{back:>11.1f}{back / base[3]:>7.2f}")


if __name__ == "__main__":
    main()
