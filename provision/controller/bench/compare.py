"""Compare a benchmark with an earlier one, by the file bench.json of its report. Reads that file.

The server may be another one or have other settings: that is what is compared. What changed on the machines between the
two runs is in the ratios too, and outside their intervals.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provision.controller.bench.intervals import Ratio, ratio
from provision.controller.bench.run import Measured, Sizes, machine_text
from provision.errors import UsageError

Rounds = list[dict[str, dict[str, float]]]
"""Rates of every stage, by round."""


def earlier(path: Path, sizes: Sizes) -> Rounds:
    """Return the rounds of an earlier report. Raises UsageError for other sizes or another machine of the clients."""
    try:
        before: dict[str, Any] = json.loads(path.read_text())
        rounds: Rounds = before["rounds"]
        had = {"client": before["client"], **before["sizes"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "not a report of provision bench", where=str(path), seen=str(error), allowed="bench.json of --report"
        ) from None
    for name, value in {"client": machine_text(), **asdict(sizes)}.items():
        if had.get(name) != value:
            raise UsageError(
                "the earlier benchmark ran under different conditions",
                where=str(path), seen=f"{name} {value}", allowed=f"{name} {had.get(name)}, as in the earlier one",
            )  # fmt: skip
    return rounds


def compare(measured: Measured, before: Rounds) -> dict[str, dict[str, Ratio]]:
    """Return the ratios `rate` and `p95` by stage."""
    found = {}
    for name in measured.rates:
        new = [each[name] for each in measured.rounds]
        rate = ratio([each.tps for each in new], [each[name]["tps"] for each in before])
        found[name] = {"rate": rate, "p95": ratio([each.p95 for each in new], [each[name]["p95"] for each in before])}
    return found


def lines(found: dict[str, dict[str, Ratio]]) -> list[str]:
    """Return a table: each ratio with its 95 % interval, which needs several rounds."""
    head = f"{'compared with before':20}{'rate':>20}{'p95':>20}"
    return [head, *(f"{name:20}{row['rate'].shown:>20}{row['p95'].shown:>20}" for name, row in found.items())]
