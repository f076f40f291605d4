"""Migrate a database between versions as golang-migrate does, but refuse what it would ignore. Does IO.

Each command opens a session with both locks, reads the state, and refuses problems before it changes anything. For
each step it commits (target, dirty), runs the file, checks the result, and commits (target, clean). It prints nothing;
a Narrator receives the progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest

from psycopg import sql

from provision.database import Session, guarded
from provision.errors import ConfirmationError, DatabaseError, HostError, MigrationError, UsageError
from provision.host.migrate import drift, evidence, explain, steps
from provision.host.migrate.directory import Directory
from provision.host.migrate.files import NONE, Catalogue
from provision.host.migrate.ledger import Entry, State
from provision.host.migrate.narrate import Narrator
from provision.host.migrate.perform import Performer, half_built
from provision.host.migrate.session import Locked, locked
from provision.host.migrate.settings import Settings
from provision.host.migrate.steps import Route, Step
from provision.host.migrate.watch import Watcher
from provision.plan import load


@dataclass
class Report:
    """Result of a command."""

    database: str
    before: State
    after: State
    done: list[tuple[Step, float]] = field(default_factory=list)
    adopted: int = 0


class Runner:
    """One run of one command. `interrupted` returns the name of a received signal, or an empty string."""

    def __init__(
        self,
        settings: Settings,
        narrator: Narrator | None = None,
        interrupted: Callable[[], str] = lambda: "",
        confirmed: str = "",
    ) -> None:
        """Open nothing yet. `confirmed` is the name of the database whose data may be destroyed."""
        self.settings = settings
        self.confirmed = confirmed
        self.narrator = narrator or Narrator()
        self.interrupted = interrupted
        self.directory = Directory(settings.path)

    def up(self, limit: int | None = None) -> Report:
        """Apply the next `limit` migrations, or all."""
        return self._travel(lambda catalogue, current: steps.up(catalogue, current, limit))

    def down(self, limit: int | None = None) -> Report:
        """Revert the last `limit` migrations, or all."""
        return self._travel(lambda catalogue, current: steps.down(catalogue, current, limit))

    def goto(self, version: int) -> Report:
        """Migrate up or down to a version."""
        return self._travel(lambda catalogue, current: steps.goto(catalogue, current, version))

    def force(self, version: int) -> Report:
        """Record a clean version and the checksums of the current files. Runs nothing."""
        catalogue = self.directory.catalogue()
        with locked(self.settings, self._waiting) as session:
            ledger = session.ledger
            try:
                before = ledger.state()
            except DatabaseError:  # more than one row, which force repairs
                before = State(NONE, dirty=True)
            ledger.create()
            after = State(version, dirty=False)
            entries = drift.adoption(catalogue, ledger.records(), version, self.directory, "forced")
            ledger.force(after, entries)
            return Report(ledger.database, before, after, adopted=len(entries))

    def adopt(self, version: int) -> Report:
        """Record a clean version as the superuser, in a database whose objects belong to others. Runs nothing."""
        catalogue = self.directory.catalogue()
        with locked(self.settings, self._waiting) as session, session.connection.transaction():
            ledger = session.ledger
            ledger.replace()
            entries = drift.adoption(catalogue, {}, version, self.directory, "forced")
            ledger.force(State(version, dirty=False), entries)
            return Report(ledger.database, State(NONE, dirty=False), State(version, dirty=False), adopted=len(entries))

    def drop(self, schema: str | None = None) -> Report:
        """Drop every table of a schema, the version table and the history table, in one transaction.

        Without a name, drop the tables of the current schema, as golang-migrate does.
        """
        with locked(self.settings, self._waiting) as session:
            self._require_confirmation(session, "drop", always=True)
            before = session.ledger.state()
            _drop_tables(session, schema)
            return Report(session.ledger.database, before, State(NONE, dirty=False))

    def _travel(self, plan: Callable[[Catalogue, int], Route]) -> Report:
        catalogue = self.directory.catalogue()
        with locked(self.settings, self._waiting) as session:
            ledger = session.ledger
            state = ledger.state()
            if state.dirty:
                before = max((v for v in catalogue.versions if v < state.version), default=NONE)
                last = ledger.unfinished(state)
                invalid = half_built(session.connection, self.directory, state, last)
                raise explain.dirty(state, last, before, where=f"database {ledger.database}", invalid=invalid)
            if not catalogue.pairs:
                drift.refuse(catalogue.problems, compatible=self.settings.compatible, where=str(self.settings.path))
                raise MigrationError(
                    "no migrations found",
                    where=str(self.settings.path),
                    allowed="a directory of VERSION_title.up.sql and VERSION_title.down.sql files",
                    run="provision migrate up --path DIRECTORY",
                )
            route = plan(catalogue, state.version)
            records = ledger.records()
            problems = drift.all_problems(
                catalogue, records, state.version, route.steps, self.directory, separately=self.settings.multi_statement
            )
            for problem in drift.refuse(problems, compatible=self.settings.compatible, where=str(self.settings.path)):
                self.narrator.warn(problem)
            if any(step.direction == "down" for step in route.steps):
                self._require_confirmation(session, "down")
            ledger.create()
            entries = drift.adoption(catalogue, records, state.version, self.directory)
            if entries:
                ledger.force(state, entries)
                self.narrator.note(f"adopted migrations of another tool: {_listed(entries)}")
            report = Report(ledger.database, state, state, adopted=len(entries))
            self._run(session, route.steps, report)
            _refuse_short(route, ledger.database)
            return report

    def _run(self, session: Locked, route: tuple[Step, ...], report: Report) -> None:
        timeout = self.settings.lock_timeout_s
        watcher = Watcher(self.settings.url, session.connection.info.backend_pid, min(1.0, timeout / 2) or 1.0)
        performer = Performer(session, self.settings, self.narrator, watcher, self.interrupted)
        ledger = session.ledger
        try:
            for step, following in zip_longest(route, route[1:]):
                if step is route[0]:
                    self._stop_if_interrupted(f"before {step.label}; version {report.after} is clean")
                    ledger.begin(step, self._checksum(step))
                begun = time.monotonic()
                body = self._body(session, step, report)
                after = State(step.target, dirty=False)
                end = ledger.ending(after, "done", wait=following is None)
                performer.perform(
                    step, body, end, ledger.beginning(following, self._checksum(following)) if following else None
                )
                del body  # never two files in memory
                report.after = after
                seconds = time.monotonic() - begun
                report.done.append((step, seconds))
                self.narrator.done(step, seconds)
        finally:
            watcher.close()

    def _checksum(self, step: Step) -> str | None:
        return self.directory.inspect(step.file).checksum if step.file else None

    def _body(self, session: Locked, step: Step, report: Report) -> bytes:
        """Read the file of a step marked dirty; clear the mark if the file will not run."""
        try:
            self._stop_if_interrupted(f"before {step.label}; version {report.after} is clean")
            return self.directory.body(step.file) if step.file else b""
        except MigrationError:
            session.ledger.end(report.after, "interrupted")
            raise

    def _waiting(self, seconds: float, others: list[Session]) -> None:
        self._stop_if_interrupted("while waiting for the migration lock; nothing changed")
        self.narrator.running("another run", seconds, "held by " + "; ".join(map(str, others)))

    def _require_confirmation(self, session: Locked, command: str, *, always: bool = False) -> None:
        database, guard = session.ledger.database, guarded(session.connection)
        where = f"database {database}, {'guarded' if guard else 'not guarded'}"
        if (guard or always) and self.confirmed != database:
            raise ConfirmationError(
                f"{command} destroys data and was not confirmed",
                name=database,
                where=where,
                seen=f"confirmed: {self.confirmed or 'nothing'}",
                run=f"provision migrate {command} ... --yes-destroy {database}",
            )
        if guard and not self.settings.without_backup:
            info = session.connection.info
            if doubt := evidence.doubt(info.host, self.settings.evidence):
                raise UsageError(
                    f"{command} destroys data, but no recent restore-tested backup is known",
                    where=where,
                    seen=doubt,
                    allowed=f"a restore test in the last {evidence.FRESH_H:.0f} h, or --without-backup",
                    run=_drill()
                    if evidence.is_here(info.host)
                    else f"on that host: provision migrate {command} ... --yes-destroy {database}",
                )

    def _stop_if_interrupted(self, when: str) -> None:
        if signal := self.interrupted():
            raise MigrationError(f"interrupted by {signal} {when}", run="provision migrate status")


def _drill() -> str:
    """Return the command, run on the controller, that restore-tests the backups of this host."""
    try:
        return load.load().site(playbook="drill.yml")
    except HostError:  # not a provisioned host, or not readable for this user
        return "ansible-playbook drill.yml -i INVENTORY"


def _listed(entries: list[Entry]) -> str:
    verbs = {"up": "applied", "down": "reverted"}
    shown = [f"{entry.version} {verbs[entry.direction]}" for entry in entries[:10]]
    return ", ".join(shown) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")


def _refuse_short(route: Route, database: str) -> None:
    """Fail as golang-migrate does if fewer steps ran than requested; no step at all is no change."""
    if route.short and route.steps:
        raise MigrationError(
            f"limit {len(route.steps) + route.short} short by {route.short}",
            where=f"database {database}",
            seen=f"only {len(route.steps)} existed, and all of them ran",
            run="provision migrate status",
        )


def _drop_tables(session: Locked, schema: str | None) -> None:
    ledger = session.ledger
    rows = session.connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND (n.nspname = coalesce(%s, current_schema())"
        " OR n.nspname = %s AND c.relname IN (%s, %s))",
        (schema, ledger.schema, ledger.table, ledger.history_table),
    ).fetchall()
    if rows:
        tables = sql.SQL(", ").join(sql.Identifier(str(schema), str(table)) for schema, table in rows)
        session.connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(tables))
