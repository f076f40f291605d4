"""Run one file with retries, and verify its effect on the runner's session and tables. Does IO.

Returns if the file succeeded and the session still holds its locks. Otherwise it records the true version (dirty, or
the previous one if the file was interrupted or blocked and rolled back completely) and raises MigrationError.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from provision.database import Connection
from provision.errors import MigrationError
from provision.host.migrate import explain
from provision.host.migrate.directory import Directory
from provision.host.migrate.execute import RETRIABLE, Outcome, send, send_each
from provision.host.migrate.explain import Failure, Kept
from provision.host.migrate.files import Problem, Severity
from provision.host.migrate.ledger import Record, State
from provision.host.migrate.narrate import Narrator
from provision.host.migrate.session import Locked
from provision.host.migrate.settings import Settings
from provision.host.migrate.sql import statements
from provision.host.migrate.steps import Step
from provision.host.migrate.watch import Watcher

RETRY_PAUSE_S = 1.0
"""Pause before the first retry, then doubled: lets the sessions pass that queued behind our lock request."""


@dataclass(frozen=True)
class Sent:
    """The last message sent for a file: its outcome, its byte range in the file, and the number of tries."""

    outcome: Outcome
    start: int
    end: int
    tries: int


@dataclass(frozen=True)
class Performer:
    """Everything needed to run files, except the files."""

    session: Locked
    settings: Settings
    narrator: Narrator
    watcher: Watcher
    interrupted: Callable[[], str]

    def perform(self, step: Step, body: bytes, end: bytes, begin: bytes | None) -> None:
        """Run the file of a step already marked dirty; then commit its end and the start of the next step."""
        old = frozenset(invalid_indexes(self.session.connection, body))
        outcome = self._run(step, body, old) if body.strip() else Outcome()
        quiet = not outcome.rollbacks and not re.search(rb"concurrently", body, re.IGNORECASE)
        if quiet and self.session.turn(State(step.target, dirty=True), end, begin):
            return
        self._check(Failure(step, self._path(step), self._where(), Kept.ALL), body, outcome, old)
        self.session.write(end, begin)

    def _run(self, step: Step, body: bytes, old: frozenset[str]) -> Outcome:
        sent = self._send(step, body)
        outcome, rest = sent.outcome, explain.kept(body[sent.start : sent.end], sent.outcome)
        failure = Failure(step, self._path(step), self._where(), rest)
        if outcome.error is not None:
            raise self._failed(failure, body, sent, old)
        if outcome.open or outcome.copied:
            self.session.secure()
            what = "left a transaction open" if outcome.open else "copied data to the client"
            raise self._caught(failure, what)
        return outcome

    def _path(self, step: Step) -> str:
        return str(self.settings.path / step.label)

    def _where(self) -> str:
        return f"database {self.session.ledger.database}"

    def _send(self, step: Step, body: bytes) -> Sent:
        begun = time.monotonic()

        def tick() -> bool:
            self.watcher.look()
            self.narrator.running(step.label, time.monotonic() - begun, self.watcher.note)
            return bool(self.interrupted())

        for tries in range(1, self.settings.retries + 2):
            self.watcher.start()
            if self.settings.multi_statement:
                sent = Sent(*send_each(self.session.connection, body, tick), tries)
            else:
                sent = Sent(send(self.session.connection, body, tick), 0, len(body), tries)
            sqlstate = sent.outcome.error.sqlstate if sent.outcome.error else ""
            retriable = (
                sqlstate in RETRIABLE and explain.kept(body[sent.start : sent.end], sent.outcome) is Kept.NOTHING
            )
            if not retriable or tries > self.settings.retries or self.interrupted():
                break
            blocked = f", blocked by {'; '.join(map(str, self.watcher.seen))}" if self.watcher.seen else ""
            self.narrator.note(f"{step.label}: {RETRIABLE[sqlstate]}{blocked}; rolled back, retrying")
            self._pause(RETRY_PAUSE_S * 2 ** (tries - 1))
        return sent

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.interrupted():
            time.sleep(0.05)

    def _failed(self, failure: Failure, body: bytes, sent: Sent, old: frozenset[str]) -> MigrationError:
        signal, outcome = self.interrupted(), sent.outcome
        retriable = outcome.error is not None and outcome.error.sqlstate in RETRIABLE
        blamed = retriable and bool(self.watcher.seen)
        invalid: list[str] = []
        if not outcome.lost:
            self.session.secure()
            invalid = invalid_indexes(self.session.connection, body, old)
        clean = failure.rest is Kept.NOTHING and not invalid and (bool(signal) or retriable)
        error = explain.failed(
            failure,
            body,
            outcome,
            base=sent.start,
            dirty=not clean,
            blocked_by=self.watcher.seen if blamed else (),
            invalid=invalid,
            tries=sent.tries,
            signal=signal,
        )
        if not outcome.lost:
            step = failure.step
            after = State(step.start, dirty=False) if clean else State(step.target, dirty=True)
            detail = f"{error.what}; {failure.rest.value}"
            self.session.ledger.end(after, "interrupted" if signal else "failed", detail)
        return error

    def _check(self, failure: Failure, body: bytes, outcome: Outcome, old: frozenset[str]) -> None:
        """Detect damage to the run by a file that succeeded: lost locks, changed tables, INVALID indexes."""
        ledger = self.session.ledger
        tolerable, fatal = [], []
        found = self.session.secure()
        if not found.locked:
            tolerable.append("released the migration lock")
        if outcome.rollbacks and outcome.rollbacks > sum(
            "TO" in s.words[:4] for s in statements(body) if s.begins("ROLLBACK")
        ):
            tolerable.append("contains a ROLLBACK that reverted all or part of it")
        if found.state is None:
            fatal.append(f"dropped {ledger.name}")
        elif not ledger.has_history():
            tolerable.append(f"dropped {ledger.history_name}")
        elif found.state != State(failure.step.target, dirty=True):
            tolerable.append(f"changed {ledger.name}")
        invalid = invalid_indexes(self.session.connection, body, old)
        fatal += [f"left an INVALID index {index}" for index in invalid]
        ledger.create()
        if fatal or (tolerable and not self.settings.compatible):
            raise self._caught(failure, " and ".join(tolerable + fatal), invalid)
        for what in tolerable:
            seen = "golang-migrate would not notice"
            self.narrator.warn(Problem("caught", failure.step.label, f"{what}; {seen}", "", Severity.WARNING))

    def _caught(self, failure: Failure, what: str, invalid: Sequence[str] = ()) -> MigrationError:
        error = explain.caught(failure, what, invalid)
        self.session.ledger.end(State(failure.step.target, dirty=True), "failed", f"{what}; {failure.rest.value}")
        return error


def invalid_indexes(connection: Connection, body: bytes, old: frozenset[str] = frozenset()) -> list[str]:
    """List the INVALID indexes that a file with CONCURRENTLY mentions, by index name or by table name.

    Excludes indexes in schemas outside search_path that the file does not mention, and indexes that were INVALID
    before (`old`) unless the file mentions them by name.
    """
    if not re.search(rb"concurrently", body, re.IGNORECASE):
        return []
    if not any("CONCURRENTLY" in statement.words for statement in statements(body)):
        return []
    rows = connection.execute(
        "SELECT format('%I.%I', n.nspname, c.relname), c.relname, t.relname, n.nspname,"
        " n.nspname = ANY (current_schemas(false)) FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND c.relkind = 'i'"
    ).fetchall()
    text = body.decode("utf-8", "replace")

    def mentioned(name: object) -> bool:
        return re.search(rf"(?<!\w){re.escape(str(name))}(?!\w)", text, re.IGNORECASE) is not None

    return [
        str(shown)
        for shown, index, table, schema, in_path in rows
        if (mentioned(index) or (mentioned(table) and str(shown) not in old)) and (in_path or mentioned(schema))
    ]


def half_built(connection: Connection, directory: Directory, state: State, last: Record | None) -> list[str]:
    """List the INVALID indexes of the file that a lost run left dirty; none if the file is gone."""
    pair = directory.catalogue().by_version.get(last.version if last else state.version)
    file = (pair.down if last and last.direction == "down" else pair.up) if pair else None
    try:
        return invalid_indexes(connection, (directory.path / file.name).read_bytes()) if file else []
    except OSError:  # reported with the other problems of the directory
        return []
