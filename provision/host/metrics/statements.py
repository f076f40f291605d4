"""Metrics of the statements that use most of the server's time. Pure.

The number of series is bounded: TOP statements by execution time since the reset, and one sum of all others. Texts are
cut, and have no constants.
"""

from __future__ import annotations

from collections.abc import Callable

from provision.host.metrics.exposition import Metric, single
from provision.host.queries.ranking import ranked
from provision.host.queries.statements import Counters, Reading

TOP = 20
CUT = 80
"""Longest text of a statement in a label, in characters."""
OTHERS = {"query_id": "others", "role": "", "database": "", "statement": "all others"}
_COUNTERS: tuple[tuple[str, str, Callable[[Counters], float]], ...] = (
    ("provision_statement_seconds_total", "Execution time of a statement.", lambda used: used.total_ms / 1000),
    ("provision_statement_calls_total", "Executions of a statement.", lambda used: used.calls),
    (
        "provision_statement_blocks_total",
        "Blocks of 8 KiB that a statement read or wrote outside shared_buffers, temporary files included.",
        lambda used: used.read_blocks + used.written_blocks + used.temp_blocks,
    ),
)


def metrics(reading: Reading) -> list[Metric]:
    """Convert a reading: counters by query_id, role, database and statement."""
    top = ranked(reading.statements, "total", TOP)
    shown = {each.statement.key for each in top}
    rest = [each.counters for each in reading.statements if each.key not in shown]
    found = []
    for name, text, measure in _COUNTERS:
        samples = [
            (
                {
                    "query_id": each.statement.query_id,
                    "role": each.statement.role,
                    "database": each.statement.database,
                    "statement": short(each.statement.text),
                },
                measure(each.statement.counters),
            )
            for each in top
        ]
        found.append(Metric(name, text, (*samples, (OTHERS, sum(map(measure, rest)))), kind="counter"))
    return [
        *found,
        single("provision_statements_tracked", "Statements in pg_stat_statements.", len(reading.statements)),
        single("provision_statements_limit", "pg_stat_statements.max.", reading.limit),
        Metric(
            "provision_statements_evictions_total",
            "Times that the least used statements were dropped for lack of room.",
            (({}, reading.evicted),),
            kind="counter",
        ),
    ]


def short(text: str) -> str:
    """Return a text on one line, cut to CUT characters."""
    line = " ".join(text.split())
    return line if len(line) <= CUT else f"{line[: CUT - 3]}..."
