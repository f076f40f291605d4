"""A tuning as tables for the terminal. Pure: returns text. Uses rich if installed (hosts do not have it)."""

from __future__ import annotations

import io
from collections.abc import Sequence

from provision.tuning.model import Setting, Tuning


def explained(tuning: Tuning, width: int = 110) -> str:
    """Return tables of the memory budget and of every setting with its reason, `width` columns wide."""
    budget = [(line.label, f"{line.mb} MB", line.reckoning) for line in tuning.budget]
    budget.append(("worst case", f"{tuning.budget_mb} MB", f"of {tuning.memory_mb} MB"))
    parts = [_table("Memory budget", ("part", "size", "calculation"), budget, width)]
    groups: dict[str, list[Setting]] = {}
    for setting in tuning.settings:
        groups.setdefault(setting.group, []).append(setting)
    groups["application and read-only roles"] = list(tuning.role_settings)
    if tuning.kernel:
        groups["kernel"] = list(tuning.kernel)
    for title, members in groups.items():
        rows = [(row.name + (" *" if row.restart else ""), row.text, row.reason) for row in members]
        parts.append(_table(title.capitalize(), ("setting", "value", "reason"), rows, width))
    return "\n".join([*parts, "* needs a restart"]) + "\n"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return _plain(title, rows)
    table = Table(title=title, title_justify="left", width=width)
    for name in head:
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False)
    console.print(table)
    text = console.file
    assert isinstance(text, io.StringIO)  # noqa: S101 - made three lines above
    return text.getvalue()


def _plain(title: str, rows: Sequence[Sequence[str]]) -> str:
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"  {row[0]:<{first}}  {row[1]:<{second}}  {row[2]}" for row in rows]
    return "\n".join([title, *lines]) + "\n"
