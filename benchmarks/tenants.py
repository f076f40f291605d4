"""What a number of tenants costs: migrations, checks, maintenance, metrics, backups, memory. Prints one table.

    python -m benchmarks.tenants [N]

Half of the tenants are migrated one at a time, half in parallel; all get the project's migrations and no rows. Times
are of one run, as they come: progress goes to stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from provision import system
from provision.checks import doctor, drift
from provision.checks import tenants as checks
from provision.controller import inputs
from provision.database import Connection, connect_pinned
from provision.host.maintain import run as maintain
from provision.host.maintain import tenants as of_tenants
from provision.host.metrics import database
from provision.host.metrics import tenants as metrics
from provision.host.migrate.settings import Settings
from provision.host.tenants import login, migrations, statistics
from provision.plan.schema import Plan
from tests import buckets, plans
from tests.clusters import as_server_user, run
from tests.contract.repository import ROOT
from tests.templates.test_render import render
from tests.tenants import MIGRATIONS, Place, place

T = TypeVar("T")
LOGINS = 20
SIZES = """
SELECT round(pg_database_size(current_database()) / 2^20), (SELECT count(*) FROM pg_class),
    (SELECT round(sum(pg_total_relation_size(oid)) / 2^20) FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
     AND relkind = 'r')
"""
ARCHIVING = {"archive_mode": "on", "wal_level": "replica", "archive_command": "/bin/true"}
rows: list[tuple[str, str]] = []


def note(label: str, figure: str) -> None:
    """Keep a row of the table."""
    rows.append((label, figure))
    print(f"{label}: {figure}", file=sys.stderr, flush=True)


def timed(label: str, work: Callable[[], T], number: int = 1) -> T:
    """Run and note the seconds, and those of each of `number` parts."""
    begun = time.monotonic()
    result = work()
    seconds = time.monotonic() - begun
    note(label, f"{seconds:.2f} s" + (f", each {seconds / number:.3f}" if number > 1 else ""))
    return result


def memory(session: Connection, label: str) -> None:
    """Note the private memory of a session's process."""
    status = Path(f"/proc/{session.info.backend_pid}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("RssAnon"))
    note(f"private memory of a session: {label}", f"{int(line.split()[1]) / 1024:.1f} MB")


def fill(here: Place, first: int, number: int, jobs: int) -> None:
    """Create tenants and migrate them."""
    names = [f"t{first + each:04d}" for each in range(number)]
    timed(f"tenant add, {number} tenants", lambda: [here.add(name, migrate=False) for name in names], number)
    found = timed(
        f"migrate up --all-tenants --jobs {jobs}, {number} tenants",
        lambda: migrations.up(here.plan, Settings("", MIGRATIONS), jobs=jobs), number,
    )  # fmt: skip
    failed = [each for each in found if each.outcome == "failed"]
    if failed:
        raise SystemExit(f"{len(failed)} tenants failed: {failed[0]}")


def look(here: Place) -> None:
    """Time what reads all tenants."""
    plan, settings = here.plan, Settings("", MIGRATIONS)
    timed("migrate up --all-tenants, nothing pending", lambda: migrations.up(plan, settings))
    with login.superuser(plan) as session:
        memory(session, "superuser, new")
        timed("migrate status --all-tenants", lambda: migrations.versions(session, settings))
        memory(session, "superuser that read all versions")
        timed("tenant list", lambda: statistics.read(session))
        memory(session, "superuser that read all sizes")
        every = (checks.schemas, checks.versions, checks.sizes, checks.locks)
        timed("doctor, checks of tenants", lambda: [list(each(plan, session)) for each in every])
    with login.superuser(plan) as session:
        timed("doctor, grants", lambda: list(drift.access(plan, session)))
        memory(session, "superuser that compared all grants")
    timed("doctor, all checks of the server", lambda: doctor._server(plan))
    timed("site.yml --tags database, its command on the host, second run", here.converge)
    with connect_pinned(plan.server.url("minion"), application="bench") as session:
        found = timed("metrics, tenants", lambda: metrics.read(session, MIGRATIONS))
        found += timed(
            "metrics, database", lambda: [each for read in database.CATALOGUE.values() for each in read(session)]
        )
    note("metrics, series", str(sum(len(each.samples) for each in found)))


def maintained(here: Place, number: int) -> None:
    """Run each job of maintenance, with nothing to do."""
    for job in maintain.JOBS:
        facts = timed(
            f"maintain {job}, all tenants",
            lambda job=job: of_tenants.run_all(here.plan, maintain.run(here.plan, job)), number,
        )  # fmt: skip
        if facts["outcome"] != "done":
            raise SystemExit(f"{job}: {facts.get('why')}")


def sessions(here: Place) -> None:
    """Time logins, and measure a session of one tenant."""
    timed(f"{LOGINS} logins", lambda: [here.session("t0000_app").close() for _ in range(LOGINS)], LOGINS)
    with here.session("t0000_app") as session:
        session.execute("SELECT * FROM agent_stats")
        memory(session, "application that read its tenant's tables")


def backups(here: Place) -> None:
    """Dump the database, and take a full physical backup with the configuration of a prod host."""
    server, programs = here.server, here.plan.server.programs
    where = ("-h", server.host, "-p", str(server.port), "-U", "postgres")
    dump = [f"{programs}/pg_dump", *where, "--format=custom", f"--file={server.root}/all.dump", "minion"]
    timed("pg_dump of the database", lambda: subprocess.run(dump, check=True))
    tool = ("pgbackrest", f"--config={repository(here)}", "--stanza=db1")
    run(*as_server_user(*tool, "stanza-create"))
    server.psql(f"ALTER SYSTEM SET archive_command = '{' '.join(tool)} archive-push %p'")
    server.psql("SELECT pg_reload_conf()")
    timed("pgBackRest, full backup", lambda: run(*as_server_user(*tool, "--type=full", "backup")))
    note("files of the data directory", str(sum(len(names) for _, _, names in os.walk(server.data))))


def repository(here: Place) -> Path:
    """Configure pgBackRest in a folder beside the data directory, and return its file."""
    folder = here.server.root / "pgbackrest"
    run("install", "-d", "-o", "postgres", "-g", "postgres", folder)
    given = {**plans.SAMPLE, "backup_repository_path": str(folder / "repository")}
    built: Plan = plans.plan("prod", {**given, "backup_logical": False})
    directory: dict[str, Any] = {"data_directory": str(here.server.data), "port": here.server.port, "settings": ()}
    plan = replace(built, server=replace(built.server, **directory))
    secret, main = (
        render(ROOT / f"templates/backup/{name}.j2", "prod", plan=inputs.published(plan, None))
        for name in ("secrets.conf", "pgbackrest.conf")
    )
    return buckets.configured(folder, secret, main, f"pg1-socket-path={here.server.host}\n")


def main(number: int) -> None:
    """Measure `number` tenants."""
    note("CPUs, load", f"{os.cpu_count()}, {os.getloadavg()[0]:.1f}")
    system.EVIDENCE = Path(tempfile.mkdtemp())
    with place({"max_locks_per_transaction": str(max(64, number // 4)), **ARCHIVING}) as here:
        half = number // 2
        fill(here, 0, number - half, 1)
        if half:
            fill(here, number - half, half, migrations.JOBS)
        whole, classes, catalogue = here.server.psql(SIZES, "minion").split("|")
        note("database, of it catalogue", f"{whole} MB, {catalogue} MB")
        note("rows in pg_class", classes)
        look(here)
        maintained(here, number)
        sessions(here)
        backups(here)
    note("load", f"{os.getloadavg()[0]:.1f}")
    width = max(len(label) for label, _ in rows)
    print("\n".join(f"{label:<{width}}  {figure}" for label, figure in rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
