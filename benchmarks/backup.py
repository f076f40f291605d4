"""Compare pgBackRest with pg_basebackup and pg_dump on one database with vectors, on one fresh host.

    python -m benchmarks.backup [MEGABYTES]

Prints seconds, sizes and ratios to a tar with zstd, and asserts nothing; physical backups are medians of rounds. The
host is converged by site.yml with the prod profile and a local repository, so no network is measured. The data is
vectors of 1,536 random numbers, which do not compress, and text, which compresses well. There are no HNSW indexes:
building them takes longer than everything else.
"""

from __future__ import annotations

import statistics
import sys
import time

from benchmarks.hosts import BenchHost, production_host

NAME = "bench-backup"
MEMORY = "8g"  # the page cache holds the database and a copy, which hides differences between disks
DATA = "/var/lib/postgresql/17/main"
VARIABLES = {"backup_allow_local_only": True, "backup_repository_inventory_name": "", "backup_repository_host": ""}
MEGABYTES = 2200
ROUNDS = 3
VECTOR_SHARE = 0.7  # of the database; 6,164 bytes each
SCRATCH = "/var/lib/postgresql/bench"
NEW = f"rm -rf {SCRATCH}/new && mkdir -m 700 {SCRATCH}/new"
CHANGE = "psql -qX -c \"UPDATE notes SET t = t || 'x' WHERE n % 50 = 0; CHECKPOINT\" minion"
Row = tuple[str, float, int, float]  # name, seconds to back up, MB, seconds to restore
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


def timed(host: BenchHost, command: str) -> float:
    """Return the seconds of a command on the host, with the data cached and dirty pages written out."""
    host.run(f"sync; cat {DATA}/base/*/* >/dev/null")
    begun = time.monotonic()
    host.run(command)
    return time.monotonic() - begun


def size(host: BenchHost, path: str) -> int:
    """Return the size of a path in MB."""
    return int(host.run(f"du -sm {path} | cut -f1"))


def prepare(host: BenchHost, megabytes: int) -> None:
    """Fill the database, and stop all timers on the host."""
    host.run(
        "systemctl stop 'provision-*.timer'; "
        "sed -i '1i local replication postgres peer' /etc/postgresql/17/main/pg_hba.conf; "
        "systemctl reload postgresql@17-main; apt-get -qy install --no-install-recommends zstd",
        user="root",
    )
    vectors = int(megabytes * VECTOR_SHARE * 2**20 / 8192)  # one chunk of TOAST fills most of a page
    fill = FILL.format(times=max(1, vectors // 4000), notes=int(megabytes * (1 - VECTOR_SHARE) * 2**20 / 640))
    host.run(f"psql -qX -v ON_ERROR_STOP=1 minion <<'SQL'\n{fill}\nSQL")
    host.run("while systemctl is-active 'provision-backup@*' | grep -q activ; do sleep 0.5; done")
    # Wait until all WAL is archived: archiving would slow the first rounds and delay a backup.
    host.run(
        "last=$(psql -XAtc 'SELECT pg_walfile_name(pg_switch_wal())');"
        """ there() { psql -XAtc "SELECT last_archived_wal >= '$last' FROM pg_stat_archiver" | grep -q t; };"""
        " for i in $(seq 300); do there && exit; sleep 1; done;"
        " exit 1"
    )
    shown = host.run("psql -XAtc 'SELECT pg_size_pretty(pg_database_size(current_database()))' minion").strip()
    print(f"database: {shown}")


def main() -> None:
    """Run all measurements and print the table."""
    with production_host(NAME, MEMORY, VARIABLES) as host:
        prepare(host, int(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES)
        table(host)


def tar(host: BenchHost) -> list[Row]:
    """Take a base backup as a zstd tar, and unpack it."""
    took = timed(host, f"pg_basebackup -D {SCRATCH}/tar -Ft --compress=client-zstd:3 -X fetch -c fast")
    back = timed(host, f"{NEW} && zstd -dc {SCRATCH}/tar/base.tar.zst | tar -x -C {SCRATCH}/new && sync -f {SCRATCH}")
    return [("pg_basebackup tar, zstd:3", took, size(host, f"{SCRATCH}/tar"), back)]


def plain(host: BenchHost) -> list[Row]:
    """Take a base backup as files, and copy them."""
    took = timed(host, f"pg_basebackup -D {SCRATCH}/plain -X fetch -c fast")
    back = timed(host, f"{NEW} && cp -a {SCRATCH}/plain/. {SCRATCH}/new/ && sync -f {SCRATCH}")
    return [("pg_basebackup plain", took, size(host, f"{SCRATCH}/plain"), back)]


def physical(host: BenchHost) -> list[Row]:
    """Take a full backup, restore it, repair a damaged restore with --delta, and take a differential backup."""
    rest = f"pgbackrest --stanza={NAME}"
    there = f"{rest} --pg1-path={SCRATCH}/new --archive-mode=off restore"
    copies = "/var/lib/pgbackrest/backup/*/latest/"
    took = timed(host, f"{rest} --type=full backup")
    full = ("pgBackRest full (zstd:3, AES)", took, size(host, copies), timed(host, f"{NEW} && {there}"))
    # Damage: one byte of a large file, and the global directory.
    host.run(
        f"f=$(find {SCRATCH}/new/base -type f -size +100M | sort | tail -1);"
        f" printf X | dd of=$f bs=1 seek=9000 conv=notrunc status=none; rm -rf {SCRATCH}/new/global"
    )
    repaired = timed(host, f"{there} --delta")
    host.run(CHANGE)
    took = timed(host, f"{rest} --type=diff backup")
    return [full, ("diff after 2 % of notes, delta restore", took, size(host, copies), repaired)]


def rounds(host: BenchHost) -> list[Row]:
    """Run all methods in each round, in rotating order because earlier writes slow the disk; return medians."""
    ways = [tar, plain, physical]
    found: dict[str, list[Row]] = {}
    for number in range(ROUNDS):
        for way in ways[number % 3 :] + ways[: number % 3]:
            for row in way(host):
                found.setdefault(row[0], []).append(row)
            host.run(f"rm -rf {SCRATCH}/*")
    return [
        (name, statistics.median(row[1] for row in rows), rows[0][2], statistics.median(row[3] for row in rows))
        for name, rows in found.items()
    ]


def dumps(host: BenchHost) -> list[Row]:
    """Dump and load once per format: their differences far exceed the variation between rounds."""
    rows: list[Row] = []
    for name, words in (
        ("pg_dump -Fc, gzip", "-Fc"),
        ("pg_dump -Fc, zstd:3", "-Fc -Z zstd:3"),
        ("pg_dump -Fd -j2, zstd:3", "-Fd -j2 -Z zstd:3"),
    ):
        took = timed(host, f"pg_dump {words} -f {SCRATCH}/dump minion")
        host.run("createdb again")
        back = timed(host, f"PGOPTIONS='-c maintenance_work_mem=512MB' pg_restore -e -j2 -d again {SCRATCH}/dump")
        rows.append((name, took, size(host, f"{SCRATCH}/dump"), back))
        host.run(f"rm -rf {SCRATCH}/dump && dropdb again")
    return rows


def table(host: BenchHost) -> None:
    """Measure all methods and print the table."""
    host.run(f"mkdir -p {SCRATCH}")
    rows = rounds(host) + dumps(host)
    base = rows[0]
    print(f"{'':<52}{'take s':>8}{'x tar':>7}{'MB':>7}{'restore s':>11}{'x tar':>7}")
    for name, took, megabytes, back in rows:
        print(f"{name:<52}{took:>8.1f}{took / base[1]:>7.2f}{megabytes:>7}{back:>11.1f}{back / base[3]:>7.2f}")


if __name__ == "__main__":
    main()
