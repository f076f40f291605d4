"""The README's table of what was tested, made from what `make test-matrix` noted. Pure but for reading files."""

from __future__ import annotations

import json
import re

from provision import compatibility
from provision.distributions import DISTRIBUTIONS
from tests.contract.repository import ROOT

BEGIN, END = "<!-- tested: made by `make docs` -->", "<!-- end of tested -->"
SYSTEMS = tuple(each.name for each in DISTRIBUTIONS if each.tested)
# Accepted combinations that have never been run.
UNTESTED = (
    *((each.name, "any") for each in DISTRIBUTIONS if not each.tested),
    ("any system, packages from PGDG itself", "any"),
    ("any system on arm64", "any"),
)
NOT_TESTED = "not tested"


def noted() -> list[dict[str, str]]:
    """What the last run of the matrix noted."""
    found: list[dict[str, str]] = json.loads((ROOT / "docs/tested.json").read_text())
    return found


def table(rows: list[dict[str, str]]) -> str:
    """One line for each system and major, and for what nobody has tested."""
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
    if one["packages_from"] == "mirror":  # which anybody may have filled
        place = f"a mirror laid out as PGDG's; packages by {one['packager'].partition(' <')[0]}"
    cells = (
        f"{system} ({one['architecture']})", one["postgresql"], f"{one['pgvector']} ({one['pgvector_from']})", place,
        said.get("dev", NOT_TESTED), said.get("prod", NOT_TESTED),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def result(row: dict[str, str]) -> str:
    """What came of one profile, and what had to be allowed for it."""
    return f"{row['result']} {row['date']}" + (f", with `{row['allowed']}`" if row["allowed"] else "")


def with_table(readme: str, rows: list[dict[str, str]]) -> str:
    """Give the README with the table that the notes make."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{table(rows)}\n{END}", readme)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(), noted()))
