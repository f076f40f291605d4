"""The statements that `up` would run, with their locks. Does read-only IO through `status`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from provision.host.migrate import report, sql
from provision.host.migrate.directory import Directory
from provision.host.migrate.distributed import refusals
from provision.host.migrate.locks import MAYBE, YES, Verdict, available, judge
from provision.host.migrate.settings import Settings
from provision.host.migrate.status import Situation, look
from provision.host.migrate.steps import Step
from provision.quoting import visible

MOST_STATEMENTS = 500
"""Statements per file that are analysed: longer files contain data and take minutes to parse."""

LONGEST_STATEMENT = 1 << 16
"""Longest statement, in bytes, that is parsed: parsing takes many times its size in memory."""


@dataclass(frozen=True)
class Planned:
    """One statement of a file."""

    line: int
    text: str
    verdict: Verdict
    refused: tuple[str, ...] = ()
    """Why Citus would refuse it on a distributed schema; only if asked."""


@dataclass(frozen=True)
class Plan:
    """The pending files in order, each with its statements."""

    situation: Situation
    files: tuple[tuple[Step, tuple[Planned, ...]], ...]


def make(settings: Settings, *, distributed: bool = False) -> Plan:
    """Plan all pending migrations; `distributed` also judges them for a schema that Citus distributes."""
    situation = look(settings)
    directory = Directory(settings.path)
    files = tuple(
        (step, tuple(_statements(directory.body(step.file), distributed=distributed) if step.file else ()))
        for step in situation.route.steps
    )
    return Plan(situation, files)


def _statements(body: bytes, *, distributed: bool) -> list[Planned]:
    planned = []
    for number, statement in enumerate(sql.statements(body)):
        if number == MOST_STATEMENTS:
            line, _ = sql.place(body, statement.start)
            planned.append(
                Planned(line, "...", Verdict(unknown=f"only the first {MOST_STATEMENTS} statements are analysed"))
            )
            break
        line, _ = sql.place(body, statement.start)
        long = statement.end - statement.start > LONGEST_STATEMENT
        text = body[statement.start : statement.end].decode("utf-8", "replace") if not long else ""
        verdict = Verdict(unknown="statement too long to analyse") if long else judge(text)
        refused = refusals(text) if distributed and text else ()
        planned.append(Planned(line, sql.first_line(body, statement.start, statement.end), verdict, refused))
    return planned


def values(plan: Plan) -> dict[str, Any]:
    """Return the plan for JSON output."""
    return {
        "database": plan.situation.database,
        **report.state(plan.situation.state),
        "parser": available(),
        "pending": [
            {
                "version": step.version,
                "name": visible(step.title),
                "file": visible(step.label),
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
        "distributed": list(planned.refused),
        "locks": [
            {"table": lock.table, "mode": lock.mode, "blocks": lock.blocks or None, "rewrites": lock.rewrites,
             "why": lock.why or None}
            for lock in planned.verdict.locks
        ],
    }  # fmt: skip


def text(plan: Plan) -> str:
    """Format the plan as text; a table rewrite is in capitals."""
    situation = plan.situation
    lines = [f"database {situation.database}: version {situation.state}, {len(plan.files)} pending"]
    if plan.files and not available():
        lines.append("Locks are not shown: pglast is not installed (on the controller: pip install pglast).")
    created: set[str] = set()
    for step, statements in plan.files:
        lines += ["", visible(step.label)]
        for planned in statements:
            lines.append(f"  line {planned.line}: {planned.text}")
            lines += [f"      {line}" for line in _verdict(planned.verdict, created)]
            lines += [f"      refused on a distributed schema: {why}" for why in planned.refused]
            created.update(planned.verdict.creates)
    lines += report.notes(situation.problems)
    return "\n".join(lines)


def _verdict(verdict: Verdict, created: set[str]) -> list[str]:
    lines = [f"locks unknown: {verdict.unknown}"] if verdict.unknown and available() else []
    for lock in verdict.locks:
        if lock.table in created:
            continue  # no other session sees this table yet
        rewrites = {YES: ", REWRITES THE TABLE", MAYBE: ", may rewrite the table"}.get(lock.rewrites, "")
        blocks = f" ({lock.blocks})" if lock.blocks else ""
        why = f": {lock.why}" if lock.why else ""
        lines.append(f"{lock.table}: {lock.mode}{blocks}{rewrites}{why}")
    return lines
