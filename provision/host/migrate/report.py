"""Format status and results as text and as JSON values. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from provision.host.migrate.files import NONE, Problem, Severity
from provision.host.migrate.ledger import State
from provision.host.migrate.status import Row, Situation
from provision.host.migrate.steps import Step
from provision.quoting import visible

_COLUMNS = ("version", "name", "state", "applied at", "by", "took", "checksum")


def state(value: State) -> dict[str, object]:
    """Return a version for JSON output; null if nothing is applied."""
    return {"version": None if value.version == NONE else value.version, "dirty": value.dirty}


def problem(value: Problem) -> dict[str, str]:
    """Return a problem for JSON output."""
    return {
        "kind": value.kind,
        "severity": value.severity.value,
        "file": visible(value.file),
        "seen": value.seen,
        "fix": value.fix,
    }


def steps(done: Sequence[tuple[Step, float]], direction: str) -> list[dict[str, Any]]:
    """List the steps of one direction with their duration in seconds."""
    return [
        {"version": step.version, "name": visible(step.title), "seconds": round(took, 6)}
        for step, took in done
        if step.direction == direction
    ]


def situation(value: Situation) -> dict[str, Any]:
    """Return the status for JSON output."""
    return {
        "database": value.database,
        "guard": value.guard,
        **state(value.state),
        "settled": value.settled,
        "pending": [row.version for row in value.pending],
        "migrations": [
            {
                "version": row.version,
                "name": visible(row.name),
                "state": row.state,
                "applied_at": row.applied_at or None,
                "by": row.by or None,
                "seconds": row.seconds,
                "checksum": row.checksum or None,
            }
            for row in value.rows
        ],
        "problems": [problem(each) for each in value.problems],
    }


def table(value: Situation) -> str:
    """Format the status: one line about the database, a table of versions, then the problems."""
    rows = [_COLUMNS, *map(_cells, value.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    marker = " (guarded)" if value.guard else ""
    head = f"database {value.database}{marker}: version {value.state}, {len(value.pending)} pending"
    return "\n".join([head, "", *lines, *notes(value.problems)])


def _cells(row: Row) -> tuple[str, ...]:
    took = "" if row.seconds is None else f"{row.seconds:.3f} s"
    return (str(row.version), visible(row.name), row.state, row.applied_at, row.by, took, row.checksum)


def notes(problems: Sequence[Problem]) -> list[str]:
    """Format the problems, one per line."""
    words = {Severity.WARNING: "warning", Severity.REFUSAL: "refused", Severity.ERROR: "refused"}
    lines = [f"{words[each.severity]}: {visible(each.file)} {each.seen} ({each.fix})" for each in problems]
    return ["", *lines] if lines else []
