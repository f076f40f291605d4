"""Rank statements by one measure, with each one's share of the load. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from provision import system
from provision.host.queries.statements import Counters, Reading, Statement

MEASURES: Mapping[str, Callable[[Counters], float]] = {
    "total": lambda used: used.total_ms,
    "mean": lambda used: used.total_ms / used.calls if used.calls else 0.0,
    "calls": lambda used: used.calls,
    "io": lambda used: used.read_blocks + used.written_blocks,
    "temp": lambda used: used.temp_blocks,
    "wal": lambda used: used.wal_bytes,
}
"""What `provision queries --by` sorts by: the larger, the higher."""
ROUNDING = 1e-9
MOST, SHOWN, CUT = 0.9, 5, 100
"""The share that `summary` looks for, the most statements that it lists, and their longest text in characters."""


@dataclass(frozen=True)
class Ranked:
    """A statement and its share, 0 to 1, of the sum over all statements (of the execution time, for `mean`)."""

    statement: Statement
    share: float


def ranked(statements: Iterable[Statement], by: str, limit: int) -> list[Ranked]:
    """Return the statements that use most; those that use nothing of it are left out. Raises KeyError."""
    measure, weight = MEASURES[by], MEASURES["total" if by == "mean" else by]
    used = [each for each in statements if each.counters.calls > 0]
    total = sum(weight(each.counters) for each in used)
    highest = sorted(used, key=lambda each: measure(each.counters), reverse=True)
    found = [each for each in highest if measure(each.counters) > 0]
    return [Ranked(each, weight(each.counters) / total) for each in found[:limit]]


def dominant(statements: Sequence[Statement], share: float) -> list[Ranked]:
    """Return the fewest statements whose execution time is together at least `share` of the load."""
    found, sum_ = [], 0.0
    for each in ranked(statements, "total", len(statements)):
        if sum_ >= share - ROUNDING:
            break
        found.append(each)
        sum_ += each.share
    return found


def summary(reading: Reading) -> tuple[str, ...]:
    """Describe the load in a few lines: the statements that are together MOST of the execution time, at most SHOWN."""
    found = dominant(reading.statements, MOST)
    if not found:
        return ()
    shown = found[:SHOWN]
    share = sum(each.share for each in shown)
    count = f"{len(shown)} statements are" if len(shown) > 1 else "one statement is"
    lines = [f"{count} {share:.0%} of the execution time since {system.stamp(reading.reset)} (provision queries):"]
    for each in shown:
        used, text = each.statement.counters, " ".join(each.statement.text.split())
        text = text if len(text) <= CUT else f"{text[: CUT - 3]}..."
        lines.append(
            f"  {each.share:.0%}, {used.calls:,.0f} calls of {used.total_ms / used.calls:,.4g} ms by "
            f"{each.statement.role}: {text}"
        )
    return tuple(lines)
