"""Compare the settings of a running server with PostgreSQL's defaults and with profile prod, on its own host.

Does IO: reads the settings of that server, whose data stays untouched, and measures each row on a cluster of its own
beside it, which needs as much memory again. The real server should be idle meanwhile.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from provision import database, system
from provision.controller.bench.harness import Bench, Configuration
from provision.controller.bench.results import Results
from provision.controller.bench.run import Sizes, interruptible
from provision.controller.bench.server import Server, served
from provision.errors import UsageError
from provision.host.backup.dumptest import NO_PRELOAD
from provision.tuning import Host, tune
from provision.tuning.detect import detect

STOCK, OURS, YOURS = "stock", "prod", "yours"
SKIPPED = (
    "archive|cluster_name|config_file|cron|data_directory|data_sync|event_source|external|hba_file|huge_pages|ident_file"
    "|include|krb_|listen|log_destination|log_directory|log_file|log_rotation|log_truncate|logging_collector|password"
    "|port$|primary_|promote_|recovery|restore_command|ssl|stats_temp|synchronous_standby|syslog|unix_socket"
)
"""Settings that say where a server is, not how fast: paths, addresses, the log's place, archive, replication, TLS."""
BLOCK, PAGE = 8192, 2 << 20
SPARE_MB = 1024
"""Memory beside the shared buffers: the sessions, and the build of a small index."""
DISK_MB = 6144
BUILDS = 3


def ours(host: Host, major: int, pgvector: str, vectors: int, *accepted: str) -> Configuration:
    """Return profile prod as the role computes it for a host."""
    tuning = tune(host, "prod", postgresql_major=major, pgvector_version=pgvector, vectors=vectors, accepted=accepted)
    pages = next((int(row.value) for row in tuning.kernel if row.name == "vm.nr_hugepages"), 0)
    return Configuration(tuning.as_conf(), pages)


def yours(connection: database.Connection) -> Configuration:
    """Return what a server's files and command line set, and the huge pages that it uses. Raises DatabaseError."""
    # Not pg_settings alone: there, this session's pinned values hide those of the files.
    rows = database.ask(
        connection,
        "(SELECT name, setting FROM pg_file_settings WHERE applied ORDER BY seqno) UNION ALL"
        " SELECT name, current_setting(name) FROM pg_settings WHERE source = 'command line' AND context <> 'internal'",
    )
    kept = {str(name): str(value) for name, value in rows if not re.match(SKIPPED, str(name), re.I)}
    libraries = [each.strip() for each in kept.get("shared_preload_libraries", "").split(",")]
    kept["shared_preload_libraries"] = ",".join(each for each in libraries if each not in NO_PRELOAD)
    conf = "\n".join(f"{name} = {_quoted(value)}" for name, value in kept.items())
    return Configuration(conf, _pages(connection))


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _pages(connection: database.Connection) -> int:
    """Return the huge pages of the server's shared memory, if it uses any: the postmaster's status tells."""
    parent = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rpartition(")")[2].split()[1]
    taken = re.search(r"^HugetlbPages:\s+([1-9]\d*) kB", Path(f"/proc/{parent}/status").read_text(), re.M)
    size = database.ask(connection, "SELECT sum(allocated_size) FROM pg_shmem_allocations")[0][0]
    return int(str(size)) // PAGE + 1 if taken else 0


def compare(
    url: str, sizes: Sizes, *, confirmed: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Results:
    """Measure stock, prod and the settings of the server of `url`, `sizes.rounds` rounds and three builds of each.

    Raises UsageError where that is refused, HostError and DatabaseError on failures.
    """
    with database.connect_pinned(url, application="provision bench") as connection:
        _refuse(connection, confirmed=confirmed)
        programs = Path(str(database.ask(connection, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")[0][0]))
        theirs = yours(connection)
    with interruptible(), served(programs) as server:
        bench = Bench(sizes, server, tell)
        _require_disk(server.root)
        _require_memory(bench, programs, {YOURS: theirs})
        bench.load()
        host = Host(**detect())  # type: ignore[arg-type]
        prod = ours(host, bench.major, bench.pgvector, sizes.vectors)
        rows = {STOCK: Configuration(""), OURS: prod, YOURS: theirs}
        _require_memory(bench, programs, rows)
        found = bench.results(rows)
        bench.compare(rows, found, rounds=sizes.rounds, builds=BUILDS, keep=tell)
        return found


def _refuse(connection: database.Connection, *, confirmed: bool) -> None:
    database.refuse_pooler(connection)
    info = connection.info
    local = info.host.startswith("/") or info.hostaddr in ("127.0.0.1", "::1")
    if not local or not Path(f"/proc/{info.backend_pid}").exists():  # a container's server has other process ids
        raise UsageError(
            "settings are compared on the host of their database, whose memory and CPUs they are made for",
            where=database.describe_connection(connection), seen="a server elsewhere",
            allowed="a server of this host, by its socket or a loopback address",
        )  # fmt: skip
    if database.ask(connection, "SELECT current_setting('is_superuser')")[0][0] != "on":
        raise UsageError(
            "another role does not see all settings", where=database.describe_connection(connection),
            seen=info.user, allowed="a superuser",
            run=f"provision bench --settings --database 'postgresql://postgres@/{quote(info.dbname)}?host=/run/postgresql'",
        )  # fmt: skip
    if database.guarded(connection) and not confirmed:
        raise UsageError(
            "this database is guarded, and a second server would load its host heavily", where=info.dbname,
            seen="provision.guard is on", allowed="--yes, while the server is not in use",
        )  # fmt: skip


def _require_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free >> 20
    if free < DISK_MB:
        raise UsageError(
            "too little disk space to compare settings", where=str(folder), seen=f"{free:,} MB free",
            allowed=f"{DISK_MB:,} MB",
        )  # fmt: skip


def _require_memory(bench: Bench[Server], programs: Path, rows: Mapping[str, Configuration]) -> None:
    """Raise UsageError if a row's shared buffers do not fit beside what runs: the kernel would kill a server."""
    known = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
    free = int(known[1]) >> 10 if known else 0
    for name, row in rows.items():
        bench.configure(row)
        words = (programs / "postgres", "-D", bench.cluster.data, "-C", "shared_buffers")
        asked = system.run(*words, user=system.POSTGRES, directory=Path("/"))
        need = (int(asked.stdout) * BLOCK >> 20) + SPARE_MB
        if need > free:
            raise UsageError(
                "too little memory for a second server with these settings",
                where=f"shared_buffers of row {name}", seen=f"{free:,} MB available", allowed=f"{need:,} MB",
                run="the same on an idle host of the same size, with these settings",
            )  # fmt: skip
