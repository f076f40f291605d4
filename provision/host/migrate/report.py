"""Turn what was found and done into a table for people and values for JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from provision.host.migrate.files import NONE, Problem, Severity
from provision.host.migrate.ledger import State
from provision.host.migrate.status import Row, Situation
from provision.host.migrate.steps import Step

_COLUMNS = ("version", "name", "state", "applied at", "by", "took", "checksum")


def printable(text: str) -> str:
    """Replace what no terminal and no JSON reader takes: the stray bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def state(value: State) -> dict[str, object]:
    """Give a version as JSON has it: null when nothing is applied."""
    return {"version": None if value.version == NONE else value.version, "dirty": value.dirty}


def problem(value: Problem) -> dict[str, str]:
    """Give a problem as JSON has it."""
    return {
        "kind": value.kind,
        "severity": value.severity.value,
        "file": printable(value.file),
        "seen": value.seen,
        "fix": value.fix,
    }


def steps(done: Sequence[tuple[Step, float]], direction: str) -> list[dict[str, Any]]:
    """List the steps of one direction, with the seconds that each took."""
    return [
        {"version": step.version, "name": printable(step.title), "seconds": round(took, 6)}
        for step, took in done
        if step.direction == direction
    ]


def situation(value: Situation) -> dict[str, Any]:
    """Give a whole status as JSON has it."""
    return {
        "database": value.database,
        "profile": value.profile or None,
        **state(value.state),
        "settled": value.settled,
        "pending": [row.version for row in value.pending],
        "migrations": [
            {
                "version": row.version,
                "name": printable(row.name),
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
    """Show a whole status: a line about the database, a table of versions, then what is wrong."""
    rows = [_COLUMNS, *map(_cells, value.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    marker = f" ({value.profile})" if value.profile else ""
    head = f"database {value.database}{marker}: version {value.state}, {len(value.pending)} pending"
    return "\n".join([head, "", *lines, *notes(value.problems)])


def _cells(row: Row) -> tuple[str, ...]:
    took = "" if row.seconds is None else f"{row.seconds:.3f} s"
    return (str(row.version), printable(row.name), row.state, row.applied_at, row.by, took, row.checksum)


def notes(problems: Sequence[Problem]) -> list[str]:
    """List what is wrong, one line each."""
    words = {Severity.WARNING: "warning", Severity.REFUSAL: "refused", Severity.ERROR: "refused"}
    lines = [f"{words[each.severity]}: {printable(each.file)} {each.seen} ({each.fix})" for each in problems]
    return ["", *lines] if lines else []
