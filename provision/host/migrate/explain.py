"""Error messages for failed files: the cause, what was committed, and the exact repair command. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from provision.database import Session
from provision.errors import MigrationError
from provision.host.migrate import sql
from provision.host.migrate.execute import RETRIABLE, Outcome
from provision.host.migrate.ledger import Record, State
from provision.host.migrate.steps import Step

SHOWN = 300
"""Longest server text in a message, in characters: the server may quote a row or a whole file."""


NOT_IN_A_TRANSACTION = "25001"
"""SQLSTATE of a statement that cannot run inside a transaction block: it did not start."""


class Kept(Enum):
    """How much of a failed file was committed."""

    NOTHING = "rolled back: nothing of the file was kept"
    PART = "rolled back in part: everything before the last COMMIT was kept"
    ALL = "not rolled back: the whole file was kept"
    UNKNOWN = "unknown: the file may have been kept in whole or in part"


def kept(message: bytes, outcome: Outcome) -> Kept:
    """Derive from the server's responses how much of a file was committed.

    `message` is the last one sent: the whole file, or one statement of it (x-multi-statement).
    """
    if outcome.open:
        return Kept.PART if outcome.commits else Kept.NOTHING
    if outcome.lost:
        return Kept.UNKNOWN
    if outcome.error is None:
        return Kept.ALL
    if outcome.commits:
        return Kept.PART
    only = list(islice(sql.statements(message), 2))
    if len(only) != 1 or not only[0].survives_rollback or outcome.error.sqlstate == NOT_IN_A_TRANSACTION:
        return Kept.NOTHING
    if only[0].begins("DO") and not re.search(rb"\b(?:spi_)?commit\b|\bcall\b", message, re.IGNORECASE):
        return Kept.NOTHING
    return Kept.UNKNOWN


def offset(body: bytes, outcome: Outcome, base: int = 0) -> int:
    """Return the byte offset of the failure: the server's position, else the start of the failed statement."""
    if outcome.error and outcome.error.position is not None:
        return base + sql.offset_of(body[base:] if base else body, outcome.error.position)
    if base:
        return base
    failed = next(islice(sql.statements(body), outcome.done, None), None)
    return failed.start if failed else 0


@dataclass(frozen=True)
class Failure:
    """The failed file, its database, and how much of it was committed."""

    step: Step
    path: str
    where: str
    rest: Kept


def failed(
    failure: Failure,
    body: bytes,
    outcome: Outcome,
    *,
    base: int,
    dirty: bool,
    blocked_by: Sequence[Session] = (),
    invalid: Sequence[str] = (),
    tries: int = 1,
    signal: str = "",
) -> MigrationError:
    """Build the error for a file that failed or was interrupted."""
    step, error = failure.step, outcome.error
    if error is None:
        raise ValueError("the outcome has no error")
    at = offset(body, outcome, base)
    line, column = sql.place(body, at)
    start, end = next(((s.start, s.end) for s in sql.statements(body) if s.start <= at <= s.end), (at, len(body)))
    secret = sql.holds_secret(body[start:end].decode("utf-8", "replace"))

    def shown(text: str) -> str:
        return _cut(sql.masked(text) if secret or sql.holds_secret(text) else text)

    seen = [f"in statement: {sql.first_line(body, start, end)}"]
    odd = sql.unseen(body[start:end].decode("utf-8", "replace")) if error.sqlstate.startswith("42") else []
    seen += [f"the statement contains {', '.join(odd)}"] if odd else []
    seen += [f"detail: {shown(error.detail)}"] if error.detail else []
    seen += [f"hint: {shown(error.hint)}"] if error.hint else []
    seen += [f"context: {shown(error.context.splitlines()[0])}"] if error.context else []
    seen += [f"{RETRIABLE[error.sqlstate]}, tried {tries} times"] if error.sqlstate in RETRIABLE else []
    seen += ["blocked by " + "; ".join(map(str, blocked_by))] if blocked_by else []
    seen += [f"left an INVALID index {index}" for index in invalid]
    seen.append(failure.rest.value)
    what = f"interrupted by {signal}" if signal else f"{shown(error.message)} (SQLSTATE {error.sqlstate})"
    after = State(step.target, dirty=True) if dirty else State(step.start, dirty=False)
    return MigrationError(
        f"{failure.path}:{line}:{column}: {what}",
        where=f"{failure.where}, now at version {after}",
        seen="; ".join(seen),
        run=repair(step, failure.rest, invalid) if dirty else _again(step),
    )


def caught(failure: Failure, what: str, invalid: Sequence[str] = ()) -> MigrationError:
    """Build the error for a file that succeeded but did something that migrations must not do."""
    return MigrationError(
        f"{failure.path}: {what}",
        where=f"{failure.where}, now at version {State(failure.step.target, dirty=True)}",
        seen=failure.rest.value,
        allowed="files that do not touch the transaction, the locks and the tables of the runner",
        run=repair(failure.step, failure.rest, invalid),
    )


def _again(step: Step) -> str:
    return "provision migrate up" if step.direction == "up" else "provision migrate down 1"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def repair(step: Step, rest: Kept, invalid: Sequence[str] = ()) -> str:
    """Return the commands that clear the dirty state.

    A file that left an INVALID index kept nothing else, so the commands drop the index and force the previous version.
    """
    back, onward = f"provision migrate force {step.start}", f"provision migrate force {step.target}"
    drops = "".join(f"DROP INDEX CONCURRENTLY {index}; " for index in invalid)
    if rest is Kept.NOTHING or invalid:
        return f"{drops}{back}; then fix the file and: {_again(step)}"
    if rest is Kept.ALL:
        return f"{onward}; put the remaining changes into a new migration"
    return f"complete it by hand and {onward}, or revert it by hand and {back}"


@dataclass(frozen=True)
class Ways:
    """The two versions that resolve a dirty one: `undone` if nothing of the file was kept, `complete` if all was.

    `nothing_kept` is known from the history; otherwise the schema must be compared with the file. `invalid` are
    INVALID indexes to drop first.
    """

    undone: int
    complete: int
    nothing_kept: bool
    invalid: tuple[str, ...]


def ways(state: State, last: Record | None, before: int, invalid: Sequence[str] = ()) -> Ways:
    """Return the ways out of a dirty state; the arguments are those of `dirty`."""
    undone = last.version if last is not None and last.direction != "up" else before
    certain = last is not None and Kept.NOTHING.value in (last.detail or "")
    return Ways(undone, state.version, certain, tuple(invalid))


def dirty(state: State, last: Record | None, before: int, *, where: str, invalid: Sequence[str] = ()) -> MigrationError:
    """Build the error for a database that a failed or killed run left dirty.

    `last` is the history entry of that run, `before` the version before the dirty one in the directory, `invalid` the
    INVALID indexes of half-built ones: they must be dropped first, or the file's next run finds the name taken.
    """
    seen = "no history entry: another tool ran this migration"
    out = ways(state, last, before, invalid)
    if last is not None:
        how = {"failed": "failed", "interrupted": "was interrupted"}.get(
            last.outcome, "never finished: the runner, its connection or the server was lost"
        )
        seen = f"{last.version}_{last.name}.{last.direction}.sql {how}; started {last.at} by {last.by}"
        seen += f"; {last.detail}" if last.detail else ""
    run = (
        f"provision migrate force {out.undone}; then fix the file and run it again"
        if out.nothing_kept
        else f"compare the schema with the file (docs/migration-is-dirty.md); if the whole file is applied: "
        f"provision migrate force {out.complete}; if nothing of it is applied: provision migrate force {out.undone}"
    )
    if invalid:
        seen += f"; INVALID index {', '.join(invalid)}"
        run = "".join(f"DROP INDEX CONCURRENTLY {index}; " for index in invalid) + f"then {run}"
    return MigrationError(
        f"Dirty database version {state.version}. Fix and force version.",
        where=where,
        seen=seen,
        allowed="up, down and goto from a clean version",
        run=run,
    )
