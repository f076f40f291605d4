"""The table of checks in docs/a-check-fails.md, made from the registry. Pure but for reading the page."""

from __future__ import annotations

from provision.checks import registry
from tests.contract.repository import ROOT, between

PAGE = ROOT / "docs/a-check-fails.md"
BEGIN, END = "<!-- checks: made by `make docs` -->", "<!-- end of checks -->"


def table() -> str:
    """One row per check, by area and id."""
    rows = [
        "| check | area | severity | expected | why it matters | fixed by `doctor --fix` |",
        "|---|---|---|---|---|---|",
    ]
    for each in registry.every():
        severity = each.severity.value + (", accepted in development" if each.development else "")
        cells = (f"`{each.id}`", each.area, severity, each.expected, each.why, "yes" if each.safe else "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """Give the page with the table of the registry."""
    return between(page, BEGIN, END, table())
