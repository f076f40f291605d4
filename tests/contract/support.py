"""The README's table of tested combinations, made from the notes of `make test-matrix`. Pure but for reading files.

Run as a program it writes this table, and the table of checks.
"""

from __future__ import annotations

import json

from provision import compatibility
from tests.contract import checks
from tests.contract.repository import ROOT, between

BEGIN, END = "<!-- tested: made by `make docs` -->", "<!-- end of tested -->"
SYSTEMS = ("Debian 12", "Debian 13")
# Supported by the same code, but never tested.
UNTESTED = (
    ("Ubuntu 24.04", "any"),
    ("any system, packages from PGDG itself", "any"),
    ("any system on arm64", "any"),
)
NOT_TESTED = "not tested"


def noted() -> list[dict[str, str]]:
    """The notes of the last run of the matrix."""
    found: list[dict[str, str]] = json.loads((ROOT / "docs/tested.json").read_text())
    return found


def table(rows: list[dict[str, str]]) -> str:
    """One line per system and major version, and one per untested combination."""
    lines = ["| system | PostgreSQL | pgvector | packages from | dev | prod |", "|---|---|---|---|---|---|"]
    for system in SYSTEMS:
        for major in compatibility.POSTGRESQL:
            of_major = [
                row for row in rows if row["system"] == system and row["postgresql"].split(".")[0] == str(major)
            ]
            for source in sorted({row["packages_from"] for row in of_major}):
                lines.append(line(system, [row for row in of_major if row["packages_from"] == source]))
            if not of_major:
                lines.append(f"| {system} | {major} | | | {NOT_TESTED} | {NOT_TESTED} |")
    lines += [f"| {system} | {major} | | | {NOT_TESTED} | {NOT_TESTED} |" for system, major in UNTESTED]
    return "\n".join(lines)


def line(system: str, rows: list[dict[str, str]]) -> str:
    """One system with one major from one source."""
    one = rows[0]
    said = {row["profile"]: result(row) for row in rows}
    place = "the distribution"
    if one["packages_from"] == "mirror":  # anyone may have filled it
        place = f"a mirror laid out as PGDG's; packages by {one['packager'].partition(' <')[0]}"
    cells = (
        f"{system} ({one['architecture']})", one["postgresql"], f"{one['pgvector']} ({one['pgvector_from']})", place,
        said.get("dev", NOT_TESTED), said.get("prod", NOT_TESTED),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def result(row: dict[str, str]) -> str:
    """The result of one profile, with the variables that it needed."""
    return f"{row['result']} {row['date']}" + (f", with `{row['allowed']}`" if row["allowed"] else "")


def with_table(readme: str, rows: list[dict[str, str]]) -> str:
    """Give the README with the table of the notes."""
    return between(readme, BEGIN, END, table(rows))


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(), noted()))
    checks.PAGE.write_text(checks.with_table(checks.PAGE.read_text()))
