"""Status of all migrations: applied, pending or faulty. Does read-only IO and takes no lock.

Works on a standby, through a pooler, and for a read-only role.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from provision.database import Connection, connect, guarded
from provision.errors import MigrationError
from provision.host.migrate import drift, explain, steps
from provision.host.migrate.directory import Directory
from provision.host.migrate.files import NONE, Catalogue, Problem, Severity
from provision.host.migrate.ledger import Ledger, Record, State
from provision.host.migrate.perform import half_built
from provision.host.migrate.session import explaining
from provision.host.migrate.settings import Settings
from provision.host.migrate.steps import Route


@dataclass(frozen=True)
class Row:
    """One version: `state` is applied, adopted, forced, pending, dirty, deleted or out of order."""

    version: int
    name: str
    state: str
    applied_at: str = ""
    by: str = ""
    seconds: float | None = None
    checksum: str = ""
    """ok, edited, line ends, unknown (no checksum recorded), or empty if not applied."""


@dataclass(frozen=True)
class Situation:
    """A database compared with a directory of migrations."""

    database: str
    state: State
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    route: Route
    guard: bool = False
    """Destructive commands ask for confirmation."""
    ways: explain.Ways | None = None
    """The ways out of a dirty version; None for a clean one."""

    @property
    def pending(self) -> list[Row]:
        """The versions that `up` would apply."""
        return [row for row in self.rows if row.state == "pending"]

    @property
    def settled(self) -> bool:
        """True if nothing is pending and no problem would stop a run."""
        wrong = any(problem.severity is not Severity.WARNING for problem in self.problems)
        return not (self.pending or wrong)


def version(settings: Settings) -> State:
    """Read the version table only."""
    with connect(settings.url, application="provision migrate") as connection, explaining(connection, settings.url):
        ledger = Ledger(connection, settings.schema, settings.table)
        ledger.check(write=False)
        return ledger.state()


def look(
    settings: Settings, within: Callable[[Connection], AbstractContextManager[None]] = lambda _connection: nullcontext()
) -> Situation:
    """Compare files, version table and history. `route` is what `up` would run; empty if it would be refused.

    `within` is entered with the session while it reads the version table, to bound its time.
    """
    directory = Directory(settings.path)
    catalogue = directory.catalogue()
    with (
        connect(settings.url, application="provision migrate") as connection,
        explaining(connection, settings.url),
        within(connection),
    ):
        ledger = Ledger(connection, settings.schema, settings.table)
        ledger.check(write=False)
        guard = guarded(connection)
        state, records = ledger.state(), ledger.records()
        unfinished = ledger.unfinished(state) if state.dirty else None
        invalid = half_built(connection, directory, state, unfinished) if state.dirty else []
    problems, ways = [], None
    if state.dirty:
        before = max((v for v in catalogue.versions if v < state.version), default=NONE)
        dirty = explain.dirty(state, unfinished, before, where=ledger.database, invalid=invalid)
        problems.append(Problem("dirty", f"version {state}", dirty.seen, dirty.run, Severity.ERROR))
        ways = explain.ways(state, unfinished, before, invalid)
    route = Route(())
    try:
        route = steps.up(catalogue, state.version) if not state.dirty else route
    except MigrationError as error:
        problems.append(Problem("no file", str(state.version), error.what, error.run, Severity.ERROR))
    problems += drift.all_problems(
        catalogue, records, state.version, route.steps, directory, separately=settings.multi_statement
    )
    rows = _rows(catalogue, state, records, problems, unfinished)
    return Situation(ledger.database, state, tuple(rows), tuple(problems), route, guard, ways)


def _rows(
    catalogue: Catalogue, state: State, records: dict[int, Record], problems: list[Problem], unfinished: Record | None
) -> list[Row]:
    applied = drift.known(records, state.version)
    highest = max(applied, default=NONE)
    kinds = {problem.file: problem.kind for problem in problems if problem.kind in ("edited", "line ends")}
    rows = []
    for number in sorted({*catalogue.versions, *applied, *([state.version] if state.version != NONE else [])}):
        pair, record = catalogue.by_version.get(number), applied.get(number)
        name = pair.title if pair else record.name if record else ""
        if state.dirty and number == state.version:
            at, by = (unfinished.at, unfinished.by) if unfinished else ("", "")
            rows.append(Row(number, name, "dirty", at, by))
        elif record:
            gone = pair is None or pair.up is None
            known = {"done": "applied"}.get(record.outcome, record.outcome)
            checksum = kinds.get(pair.up.name, "ok") if pair and pair.up else "unknown"
            checksum = checksum if record.checksum else "unknown"
            state_name = "deleted" if gone and record.checksum else known
            rows.append(Row(number, name, state_name, record.at, record.by, record.seconds, checksum))
        elif number < highest:
            rows.append(Row(number, name, "out of order"))
        elif number <= state.version:
            rows.append(Row(number, name, "applied" if pair else "deleted", checksum="unknown"))
        else:
            rows.append(Row(number, name, "pending"))
    return rows
