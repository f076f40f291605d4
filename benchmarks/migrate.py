"""Compare 300 small migrations with psql and dbmate, on one cluster with fsync on.

Prints ratios and asserts nothing. Each round runs every tool on its own database: one psql process for all files (the
lower bound: no version table, no locks), one psql process per file, dbmate (installed by npm into a temporary
directory; skipped with a note if that fails), golang-migrate if MIGRATE_BIN is its path, and ours. Then measures
`status`, `up` with nothing to do, and the memory of our process with 10 files, 3,000 files, and one file of 20 MB.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.clusters import Cluster

FILES = 300
ROUNDS = 8
LARGE_MB = 20
OURS = (sys.executable, "-c", "from provision.cli import main; main()", "migrate")


def run(*words: str | Path) -> int:
    """Run a command and return its peak memory in KB; a failure ends the benchmark."""
    process = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}\n{output[-2000:]}")
    return usage.ru_maxrss


def timed(*words: str | Path) -> float:
    """Run a command and return its seconds."""
    start = time.monotonic()
    run(*words)
    return time.monotonic() - start


def write(folder: Path, count: int, template: str = "CREATE TABLE t{n} (id bigint PRIMARY KEY, words text);\n") -> Path:
    """Write the same migrations in our format (up and down) and in dbmate's."""
    ours, dbmate = folder / "ours", folder / "dbmate"
    ours.mkdir(parents=True)
    dbmate.mkdir()
    for n in range(1, count + 1):
        up, down = template.format(n=n), f"DROP TABLE t{n};\n"
        (ours / f"{n:04d}_t.up.sql").write_text(up)
        (ours / f"{n:04d}_t.down.sql").write_text(down)
        (dbmate / f"{n:04d}_t.sql").write_text(f"-- migrate:up\n{up}\n-- migrate:down\n{down}")
    return folder


def fetch_dbmate(folder: Path) -> Path | None:
    """Install dbmate with npm; return None if that fails."""
    npm = shutil.which("npm")
    if (
        npm is None
        or subprocess.run([npm, "install", "--silent", "--prefix", folder, "dbmate"], check=False).returncode
    ):
        print("npm could not install dbmate: skipped", file=sys.stderr)
        return None
    return folder / "node_modules/.bin/dbmate"


def tools(cluster: Cluster, folder: Path, dbmate: Path | None) -> dict[str, Callable[[str], float]]:
    """Return each tool as a function that migrates a database and returns seconds."""
    psql = (cluster.bin / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1")
    files = sorted((folder / "ours").glob("*.up.sql"))

    def one_psql(database: str) -> float:
        return timed(*psql, cluster.url(database), *(word for file in files for word in ("-f", file)))

    def psql_each(database: str) -> float:
        return sum(timed(*psql, cluster.url(database), "-f", file) for file in files)

    def ours(database: str) -> float:
        return timed(*OURS, "up", "--database", cluster.url(database), "--path", folder / "ours")

    def run_dbmate(database: str) -> float:
        url = cluster.url(database, sslmode="disable")
        return timed(str(dbmate), "--url", url, "--migrations-dir", folder / "dbmate", "--no-dump-schema", "up")

    table: dict[str, Callable[[str], float]] = {"one psql": one_psql, "ours": ours, "psql per file": psql_each}
    if dbmate:
        table["dbmate"] = run_dbmate
    if real := os.environ.get("MIGRATE_BIN"):
        table["golang-migrate"] = lambda database: timed(
            real, "-path", folder / "ours", "-database", cluster.url(database, sslmode="disable"), "up"
        )
    return table


def memory(cluster: Cluster, database: str, folder: Path) -> int:
    """Return the peak memory of our `up` in KB."""
    cluster.psql(f"CREATE DATABASE {database}")
    return run(*OURS, "up", "--database", cluster.url(database), "--path", folder / "ours")


def main() -> None:
    """Run the rounds and print the tables."""
    with tempfile.TemporaryDirectory(prefix="bench-migrate-") as name:
        work = Path(name)
        dbmate = fetch_dbmate(work / "npm")
        small = write(work / "small", FILES)
        cluster = Cluster.create({"fsync": "on"})
        try:
            times: dict[str, list[float]] = {}
            for number in range(ROUNDS):
                order = list(tools(cluster, small, dbmate).items())
                # Rotate the order, because each tool affects the disk for the next one.
                for tool, migrate in order[number % len(order) :] + order[: number % len(order)]:
                    database = re.sub("[^a-z]", "_", tool) + f"_{number}"
                    cluster.psql(f"CREATE DATABASE {database}")
                    times.setdefault(tool, []).append(migrate(database))
            floor = statistics.median(times["one psql"])
            print(f"{FILES} files, median (minimum to maximum) of {ROUNDS} rounds, fsync on")
            for tool, seconds in times.items():
                middle = statistics.median(seconds)
                print(
                    f"  {tool:14} {middle:6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})  {middle / floor:5.1f} x"
                )
            place = ("--database", cluster.url("ours_0"), "--path", small / "ours")
            for command in ("status", "up"):
                seconds = [timed(*OURS, command, *place) for _ in range(ROUNDS)]
                print(f"  {command + ', nothing to do':22} {statistics.median(seconds):.2f} s")
            few = memory(cluster, "few", write(work / "few", 10))
            many = memory(cluster, "many", write(work / "many", 3000, "SELECT {n};\n"))
            large = memory(cluster, "large", write_large(work / "large"))
            print(f"memory: 10 files {few / 1024:.0f} MB, 3,000 files {many / 1024:.0f} MB")
            over = (large - few) / 1024
            print(
                f"memory: one file of {LARGE_MB} MB {large / 1024:.0f} MB: {over / LARGE_MB:.1f} x the file size more"
            )
        finally:
            cluster.remove()


def write_large(folder: Path) -> Path:
    """Write one migration of LARGE_MB: INSERTs of 1,000 rows."""
    row = "({n}, 'the quick brown fox jumps over the lazy dog, once more')"
    rows = ",\n".join(row.format(n=n) for n in range(1000))
    insert = "INSERT INTO large VALUES " + rows + ";\n"
    body = "CREATE TABLE large (id int, words text);\n" + insert * (LARGE_MB * 2**20 // len(insert))
    return write(folder, 1, body.replace("{", "{{").replace("}", "}}"))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
