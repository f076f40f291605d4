"""What `up` would run, statement by statement, with the locks that each takes. Does IO through `status`, read-only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from provision.host.migrate import report, sql
from provision.host.migrate.directory import Directory
from provision.host.migrate.locks import MAYBE, YES, Verdict, available, judge
from provision.host.migrate.settings import Settings
from provision.host.migrate.status import Situation, look
from provision.host.migrate.steps import Step

MOST_STATEMENTS = 500
"""Statements of one file that are judged: a file of thousands is data, and parsing it all takes minutes."""

LONGEST_STATEMENT = 1 << 16
"""Bytes of a statement that is parsed: a longer one is data too, and would cost memory many times its size."""


@dataclass(frozen=True)
class Planned:
    """One statement of a file."""

    line: int
    text: str
    verdict: Verdict


@dataclass(frozen=True)
class Plan:
    """The files in the order in which they would run, each with its statements."""

    situation: Situation
    files: tuple[tuple[Step, tuple[Planned, ...]], ...]


def make(settings: Settings) -> Plan:
    """Make a plan of everything that is pending."""
    situation = look(settings)
    directory = Directory(settings.path)
    files = tuple(
        (step, tuple(_statements(directory.body(step.file)) if step.file else ())) for step in situation.route.steps
    )
    return Plan(situation, files)


def _statements(body: bytes) -> list[Planned]:
    planned = []
    for number, statement in enumerate(sql.statements(body)):
        if number == MOST_STATEMENTS:
            line, _ = sql.place(body, statement.start)
            planned.append(Planned(line, "...", Verdict(unknown=f"only the first {MOST_STATEMENTS} are judged")))
            break
        line, _ = sql.place(body, statement.start)
        long = statement.end - statement.start > LONGEST_STATEMENT
        text = body[statement.start : statement.end].decode("utf-8", "replace") if not long else ""
        verdict = Verdict(unknown="too long to be judged") if long else judge(text)
        planned.append(Planned(line, sql.first_line(body, statement.start, statement.end), verdict))
    return planned


def values(plan: Plan) -> dict[str, Any]:
    """Give a plan as JSON has it."""
    return {
        "database": plan.situation.database,
        **report.state(plan.situation.state),
        "parser": available(),
        "pending": [
            {
                "version": step.version,
                "name": report.printable(step.title),
                "file": report.printable(step.label),
                "statements": [_values(each) for each in statements],
            }
            for step, statements in plan.files
        ],
        "problems": [report.problem(each) for each in plan.situation.problems],
    }


def _values(planned: Planned) -> dict[str, Any]:
    return {
        "line": planned.line,
        "text": planned.text,
        "creates": list(planned.verdict.creates),
        "unknown": planned.verdict.unknown or None,
        "locks": [
            {"table": lock.table, "mode": lock.mode, "blocks": lock.blocks or None, "rewrites": lock.rewrites,
             "why": lock.why or None}
            for lock in planned.verdict.locks
        ],
    }  # fmt: skip


def text(plan: Plan) -> str:
    """Show a plan to people: what blocks the application is in capitals, what is new or harmless is short."""
    situation = plan.situation
    lines = [f"database {situation.database}: version {situation.state}, {len(plan.files)} pending"]
    if plan.files and not available():
        lines.append("Locks are not shown: pglast is not installed here (pip install pglast, on the controller).")
    made: set[str] = set()
    for step, statements in plan.files:
        lines += ["", report.printable(step.label)]
        for planned in statements:
            lines.append(f"  line {planned.line}: {planned.text}")
            lines += [f"      {line}" for line in _verdict(planned.verdict, made)]
            made.update(planned.verdict.creates)
    lines += report.notes(situation.problems)
    return "\n".join(lines)


def _verdict(verdict: Verdict, made: set[str]) -> list[str]:
    lines = [f"locks unknown: {verdict.unknown}"] if verdict.unknown and available() else []
    for lock in verdict.locks:
        if lock.table in made:
            continue  # nobody else knows the table yet
        rewrites = {YES: ", REWRITES THE TABLE", MAYBE: ", may rewrite the table"}.get(lock.rewrites, "")
        blocks = f" ({lock.blocks})" if lock.blocks else ""
        why = f": {lock.why}" if lock.why else ""
        lines.append(f"{lock.table}: {lock.mode}{blocks}{rewrites}{why}")
    return lines
