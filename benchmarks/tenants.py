"""What a number of tenants costs: migrations, checks, dump, catalogue. Prints seconds measured in one run.

Half of the tenants are migrated one at a time, half in parallel; both get the project's migrations and no rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from provision import system
from provision.checks import drift
from provision.checks import tenants as checks
from provision.host.migrate.settings import Settings
from provision.host.tenants import login, migrations, statistics
from tests.tenants import MIGRATIONS, Place, place

T = TypeVar("T")
LOGINS = 20
SIZES = """
SELECT pg_database_size(current_database()) / 2^20, (SELECT count(*) FROM pg_class),
    (SELECT sum(pg_total_relation_size(oid)) / 2^20 FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
     AND relkind = 'r')
"""


def timed(label: str, work: Callable[[], T], number: int = 1) -> T:
    """Run and print the seconds, and those of each of `number` parts."""
    begun = time.monotonic()
    result = work()
    seconds = time.monotonic() - begun
    each = f", each {seconds / number:.3f}" if number > 1 else ""
    print(f"{label}: {seconds:.2f} s{each}", flush=True)
    return result


def sizes(here: Place) -> None:
    """Print the sizes of the database and its catalogue."""
    whole, classes, catalogue = here.server.psql(SIZES, "minion").split("|")
    print(f"database {float(whole):.0f} MB, of it catalogue {float(catalogue):.0f} MB; {classes} rows in pg_class")


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
    settings = Settings("", MIGRATIONS)
    timed("migrate up --all-tenants, nothing pending", lambda: migrations.up(here.plan, settings))
    with login.superuser(here.plan) as session:
        timed("migrate status --all-tenants", lambda: migrations.versions(session, settings))
        timed("tenant list", lambda: statistics.read(session))
        every = (checks.schemas, checks.versions, checks.sizes, checks.locks)
        timed("doctor, checks of tenants", lambda: [list(each(here.plan, session)) for each in every])
        timed("doctor, grants", lambda: list(drift.access(here.plan, session)))
    timed("provision access, second run", here.converge)


def main(number: int) -> None:
    """Measure `number` tenants."""
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    system.EVIDENCE = Path(tempfile.mkdtemp())
    locks = max(64, number // 4)
    with place({"max_locks_per_transaction": str(locks)}) as here:
        sizes(here)
        half = max(1, number // 2)
        fill(here, 0, half, 1)
        fill(here, half, half, migrations.JOBS)
        sizes(here)
        look(here)
        timed(f"{LOGINS} logins", lambda: [here.session("t0000_app").close() for _ in range(LOGINS)], LOGINS)
        with here.session("t0000_app") as session:
            (pid,) = session.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            session.execute("SELECT * FROM agent_stats")
            private = [row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("RssAnon")]
            print(f"session that read a tenant's tables: {private[0].partition(':')[2].strip()} of private memory")
        where = ("-h", here.server.host, "-p", str(here.server.port), "-U", "postgres")
        program, target = f"{here.plan.server.programs}/pg_dump", f"{here.server.root}/all.dump"
        dump = [program, *where, "--format=custom", f"--file={target}", "minion"]
        timed("pg_dump of the database", lambda: subprocess.run(dump, check=True))
        print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
