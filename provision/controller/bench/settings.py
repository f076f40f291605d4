"""Compare the settings of a running server with PostgreSQL's defaults and with profile prod, on its own host.

Does IO: reads the settings of that server, whose data stays untouched, and measures each row on a cluster of its own
beside it, which needs as much memory again. The real server should be idle meanwhile.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import quote

from provision import database, system
from provision.checks.host import TAKEN
from provision.controller.bench.comparison import NUMBERS
from provision.controller.bench.harness import Bench, Configuration
from provision.controller.bench.processes import PARENT, fields
from provision.controller.bench.results import Results, save
from provision.controller.bench.run import Sizes, interruptible
from provision.controller.bench.server import Server, served, unaffected
from provision.errors import UsageError
from provision.host.backup.dumptest import NO_PRELOAD
from provision.tuning import Host, tune
from provision.tuning.detect import detect

STOCK, OURS, YOURS = "stock", "prod", "yours"
SKIPPED = re.compile(
    "archive|cluster_name|config_file|cron|data_directory|data_sync|default_transaction_(read|def)|event_source|external"
    "|hba_file|huge_pages|ident_file|idle_|include|krb_|listen|local_preload|lock_timeout|log_destination|log_directory"
    "|log_file|log_rotation|log_truncate|logging_collector|max_slot_wal|port$|primary_|promote_|recovery"
    "|search_path|ssl|statement_timeout|stats_temp|synchronous_standby|syslog|transaction_timeout"
    "|unix_socket|wal_keep",
    re.I,
)
"""Settings that say where a server is, not how fast: paths, addresses, the log's place, archive, replication, TLS.

And those that would end the benchmark: time-outs, and WAL that is kept.
"""
SECRET = re.compile("password|passphrase|secret|token|salt|_key|command|conninfo", re.I)
"""Settings that must not be in a report; extensions and applications have settings of their own."""
BLOCK, PAGE = 8192, 2 << 20
SPARE_MB = 1024
"""Memory beside the shared buffers and the build of the index: the sessions."""
DISK_MB = 6144
VECTOR_KB, SCALE_MB = 32, 16
"""Disk for a vector of each set with its index, and for a unit of pgbench's scale."""
BUILDS = 3


def ours(host: Host, major: int, pgvector: str, vectors: int, *accepted: str) -> Configuration:
    """Return profile prod as the role computes it for a host."""
    tuning = tune(host, "prod", postgresql_major=major, pgvector_version=pgvector, vectors=vectors, accepted=accepted)
    pages = next((int(row.value) for row in tuning.kernel if row.name == "vm.nr_hugepages"), 0)
    return Configuration(tuning.as_conf(), pages)


def yours(connection: database.Connection) -> Configuration:
    """Return what a server's files and command line set, and the huge pages that it uses. Raises DatabaseError."""
    wrong = database.ask(
        connection,
        "SELECT sourcefile || ':' || sourceline || ': ' || error FROM pg_file_settings"
        " WHERE error IS NOT NULL AND error <> 'setting could not be applied'",
    )
    if wrong:
        raise UsageError(
            "the configuration files have an error, so a reload applies none of their changes",
            seen=str(wrong[0][0]), allowed="files that a reload accepts",
        )  # fmt: skip
    # Not pg_settings alone: there, this session's pinned values hide those of the files. Not the files alone: a change
    # may wait for a restart.
    rows = database.ask(
        connection,
        "(SELECT name, setting FROM pg_file_settings WHERE applied ORDER BY seqno) UNION ALL"
        " SELECT name, current_setting(name) FROM pg_settings WHERE context <> 'internal'"
        " AND (source = 'command line' OR source = 'configuration file' AND context = 'postmaster')",
    )
    kept = {str(name): str(value) for name, value in rows
            if not SKIPPED.match(str(name)) and not SECRET.search(str(name))}  # fmt: skip
    libraries = [each.strip() for each in kept.get("shared_preload_libraries", "").split(",")]
    kept["shared_preload_libraries"] = ",".join(each for each in libraries if each not in NO_PRELOAD)
    conf = "\n".join(f"{name} = {_quoted(value)}" for name, value in kept.items())
    return Configuration(conf, _pages(connection))


def _quoted(value: str) -> str:
    # Not quoting.postgresql_conf, which refuses a tab: a server's log_line_prefix may have one.
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _pages(connection: database.Connection) -> int:
    """Return the huge pages of the server's shared memory, if it uses any: the postmaster's status tells."""
    parent = fields(Path(f"/proc/{connection.info.backend_pid}"))[PARENT]
    taken = re.search(TAKEN, Path(f"/proc/{parent}/status").read_text(), re.M)
    size = database.ask(connection, "SELECT sum(allocated_size) FROM pg_shmem_allocations")[0][0]
    return int(str(size)) // PAGE + 1 if taken and int(taken[1]) else 0


def compare(
    url: str,
    sizes: Sizes,
    report: Path | None = None,
    *,
    confirmed: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Results:
    """Measure stock, prod and the settings of the server of `url`, `sizes.rounds` rounds and three builds of each.

    Each step is kept in the file of numbers in `report`. Raises UsageError where that is refused, HostError and
    DatabaseError on failures.
    """
    socket = database.environment(url).get("PGHOST", os.environ.get("PGHOST", "/")).startswith("/")
    with (
        system.as_user() if socket else nullcontext(),  # peer authentication checks the user of the process
        database.connect_pinned(url, application="provision bench") as connection,
    ):
        data = _refuse(connection, confirmed=confirmed)
        programs = Path(str(database.ask(connection, "SELECT setting FROM pg_config WHERE name = 'BINDIR'")[0][0]))
        theirs = yours(connection)
    # On the disk of the real server, where its user may make a directory.
    user = system.POSTGRES if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    place = data.parent if data.parent.owner() == user else None
    with interruptible(), unaffected(), served(programs, place) as server:
        bench = Bench(sizes, server, tell)
        _require_disk(server.root, sizes)
        _require_memory(bench, programs, {YOURS: theirs})
        bench.load()
        host = Host(**detect(str(data)))  # type: ignore[arg-type]
        prod = ours(host, bench.major, bench.pgvector, sizes.vectors)
        rows = {STOCK: Configuration(""), OURS: prod, YOURS: theirs}
        _require_memory(bench, programs, {OURS: prod})
        found = bench.results(rows)

        def keep(what: str) -> None:
            tell(what)
            if report:
                save(found, report / NUMBERS)

        bench.compare(rows, found, rounds=sizes.rounds, builds=BUILDS, keep=keep)
        return found


def _refuse(connection: database.Connection, *, confirmed: bool) -> Path:
    """Return the data directory. Raises UsageError where the settings cannot or must not be compared."""
    database.refuse_pooler(connection)
    info = connection.info
    where = database.describe_connection(connection)
    if database.ask(connection, "SELECT current_setting('is_superuser')")[0][0] != "on":
        host = quote(info.host, safe="") if info.host.startswith("/") else "%2Frun%2Fpostgresql"
        raise UsageError(
            "only a superuser can read all settings", where=where, seen=info.user, allowed="a superuser",
            run=f"provision bench --settings --database 'postgresql://postgres@/{quote(info.dbname, safe='')}"
            f"?host={host}&port={info.port}'",
        )  # fmt: skip
    data = Path(str(database.ask(connection, "SELECT current_setting('data_directory')")[0][0]))
    try:
        own = data.samefile(f"/proc/{info.backend_pid}/cwd")  # a container's server has other process ids
    except OSError:
        own = False
    if not own:
        raise UsageError(
            "run this on the host of the database, for whose memory and CPUs the settings are made",
            where=where, seen="no process of this server, or one of another user",
            allowed="a server of this host, as root or as its user",
        )  # fmt: skip
    if database.guarded(connection) and not confirmed:
        raise UsageError(
            "this database is guarded, and a second server would load its host heavily", where=info.dbname,
            seen="provision.guard is on", allowed="--yes, while the server is not in use",
        )  # fmt: skip
    return data


def _require_disk(folder: Path, sizes: Sizes) -> None:
    free = shutil.disk_usage(folder).free >> 20
    data = sizes.vectors * VECTOR_KB // 1024 + sizes.scale * SCALE_MB
    need = max(DISK_MB, 3 * data + 2048)  # two copies while an index is built, and WAL
    if free < need:
        raise UsageError(
            "too little disk space to compare settings", where=str(folder), seen=f"{free:,} MB free",
            allowed=f"{need:,} MB, or smaller --vectors and --scale",
        )  # fmt: skip


def _require_memory(bench: Bench[Server], programs: Path, rows: Mapping[str, Configuration]) -> None:
    """Raise UsageError if a row's shared buffers do not fit beside what runs: the kernel would kill a server."""
    known = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
    free = int(known[1]) >> 10 if known else 0
    for name, row in rows.items():
        bench.configure(row)
        words = (programs / "postgres", "-D", bench.cluster.data, "-C", "shared_buffers")
        asked = system.run(*words, user=system.POSTGRES, directory=Path("/"))
        need = (int(asked.stdout) * BLOCK >> 20) + SPARE_MB + min(3072, bench.sizes.vectors * 7 // 1024)
        if need > free:
            raise UsageError(
                "too little memory for a second server with these settings",
                where=f"shared_buffers of row {name}", seen=f"{free:,} MB available", allowed=f"{need:,} MB",
                run="the same on an idle host of the same size, with these settings",
            )  # fmt: skip
