"""Migrations of many tenants: bounded parallel runs, each as its tenant, and the versions of all. Does IO.

A tenant that fails does not stop the others. A tenant at the newest version is not touched, so that a repeated run
continues where an earlier one was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from provision.database import Connection, refuse_read_only
from provision.errors import MigrationError, ProvisionError
from provision.host.migrate.directory import Directory
from provision.host.migrate.files import NONE
from provision.host.migrate.ledger import State
from provision.host.migrate.narrate import Narrator
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from provision.host.tenants import catalog, login
from provision.host.tenants import versions as stored
from provision.plan.schema import Plan

JOBS = 4
"""Tenants migrated at the same time: each needs two connections of the superuser's reserve at most."""
UNSOUND = "its schema cannot be used"


@dataclass(frozen=True)
class Version:
    """A tenant's version compared with the files."""

    name: str
    state: State | None
    """None if it cannot be read."""
    pending: tuple[int, ...]
    why: str = ""

    @property
    def settled(self) -> bool:
        """Whether it is clean and at the newest version."""
        return self.state is not None and not self.state.dirty and not self.pending


@dataclass(frozen=True)
class Result:
    """The run of one tenant. `outcome` is migrated, current, failed or not started."""

    name: str
    outcome: str
    version: str
    applied: tuple[int, ...]
    seconds: float
    why: str = ""


def versions(session: Connection, settings: Settings) -> list[Version]:
    """Return the version of every tenant. Runs no code of a tenant."""
    files = Directory(settings.path).catalogue().versions
    known = catalog.known(session)
    states = stored.read(session, [each.name for each in known if each.sound], settings.table)
    return [_version(each, states.get(each.name, ""), files) for each in known]


def _version(tenant: catalog.Tenant, state: State | str, files: Iterable[int]) -> Version:
    """Compare a version with those of the files."""
    if isinstance(state, str):
        return Version(tenant.name, None, (), state or f"{UNSOUND}: {tenant.state}")
    return Version(tenant.name, state, tuple(sorted(version for version in files if version > state.version)))


def up(
    plan: Plan,
    settings: Settings,
    *,
    jobs: int = JOBS,
    limit_s: float = login.LIMIT_S,
    interrupted: Callable[[], str] = lambda: "",
    progress: Callable[[Result, int, int], None] = lambda _result, _done, _all: None,
) -> list[Result]:
    """Migrate every tenant that is not at the newest version, `jobs` at a time.

    `progress` gets each result, the number of finished tenants and the number of all. A tenant fails after `limit_s`
    seconds. After a signal no further tenant starts; running ones end as a single migration does. Raises MigrationError
    without files.
    """
    if not Directory(settings.path).catalogue().pairs:
        raise MigrationError(
            "no migrations found",
            where=str(settings.path),
            allowed="a directory of VERSION_title.up.sql and VERSION_title.down.sql files",
            run="provision migrate up --all-tenants --path DIRECTORY",
        )
    with login.superuser(plan) as session:
        refuse_read_only(session)
        login.clean_up(session)
        found = versions(session, settings)
    results = [Result(each.name, "current", str(each.state), (), 0.0) for each in found if each.settled]
    waiting = [each.name for each in found if not each.settled]
    done = len(results)
    for result in _parallel(plan, settings, waiting, jobs, limit_s, interrupted):
        done += 1
        results.append(result)
        progress(result, done, len(found))
    return sorted(results, key=lambda each: each.name)


def _parallel(
    plan: Plan,
    settings: Settings,
    waiting: Sequence[str],
    jobs: int,
    limit_s: float,
    interrupted: Callable[[], str],
) -> Iterator[Result]:
    queue = list(reversed(waiting))
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="tenant") as pool:
        running: set[Future[Result]] = set()
        while queue or running:
            while queue and len(running) < jobs and not interrupted():
                running.add(pool.submit(_one, plan, settings, queue.pop(), limit_s, interrupted))
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for each in ended:
                yield each.result()
    for name in reversed(queue):
        yield Result(name, "not started", "", (), 0.0, f"interrupted by {interrupted()}")


def _one(plan: Plan, settings: Settings, name: str, limit_s: float, interrupted: Callable[[], str]) -> Result:
    from provision.host.fleet.apply import distribute_new

    begun = time.monotonic()
    try:
        with login.superuser(plan) as session, login.acting(plan, session, name, limit_s=limit_s) as acting:
            report = Runner(replace(settings, url=acting.url), Narrator(), interrupted).up()
        distribute_new(plan, name)
    except ProvisionError as error:
        why = "; ".join(line.strip() for line in str(error).splitlines())
        why = f"took longer than {limit_s:g} s; {why}" if limit_s and time.monotonic() - begun > limit_s else why
        return Result(name, "failed", "", (), round(time.monotonic() - begun, 3), why)
    applied = tuple(step.version for step, _ in report.done)
    seconds = round(time.monotonic() - begun, 3)
    return Result(name, "migrated" if applied else "current", str(report.after), applied, seconds)


def shown(state: State | None) -> str:
    """Return a version for a table."""
    return "unknown" if state is None else "none" if state.version == NONE else str(state)
