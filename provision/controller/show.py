"""Audit reports: a table for the terminal (rich) and one self-contained HTML page (jinja2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import IO, Any

from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.table import Table
from rich.text import Text

from provision import __version__, system
from provision.controller.audit import Seen
from provision.quoting import visible

COLOURS = {"critical": "red", "warning": "yellow", "accepted": "dim", "unseen": "dim", "ok": "green"}

SEVERITIES = {
    "critical": "act today",
    "warning": "fix with the next change",
    "unseen": "no privilege to look",
    "accepted": "by profile or inventory",
}
"""Severities in the order of the report, and what each means to the reader."""
COLUMNS = ("PostgreSQL", "pgvector", "hardware", "profile")
"""Facts of a host in the table of hosts; the rest is in its section."""


def table(seen: Sequence[Seen], stream: IO[str] | None = None) -> None:
    """Print a row per host, then each finding with the command that fixes it."""
    console = Console(file=stream, soft_wrap=False)
    hosts = Table("host", "state", "to fix", "PostgreSQL", "pgvector", "profile", box=None, pad_edge=False)
    for one in seen:
        about = [Text(visible(str(one.about.get(key, "")))) for key in ("PostgreSQL", "pgvector", "profile")]
        hosts.add_row(one.name, f"[{COLOURS[one.state]}]{one.state}[/]", str(len(one.counted)), *about)
    console.print(hosts)
    for one in seen:
        for each in one.findings:
            console.print(f"\n[bold]{one.name}[/] [{COLOURS[each.severity.value]}]{each.severity.value}[/] ", end="")
            console.print(visible(each.id), markup=False)
            shown = (each.seen, f"why: {each.why}", f"fix: {each.fix}")
            console.print("\n".join(f"  {visible(line)}" for line in shown), markup=False, highlight=False)


def page(seen: Sequence[Seen], seconds: float, inventories: Sequence[str] = (), when: str = "") -> str:
    """Return the HTML report: one section per host, no scripts, no external files, for light, dark and paper.

    `seconds` is the duration; `when` is in UTC [default: now].
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) else value,
    )  # fmt: skip
    template = environment.from_string(files("provision.controller").joinpath("audit.html.j2").read_text())
    counts = [Counter(each.severity.value for each in one.findings) for one in seen]
    hosts: list[dict[str, Any]] = [
        {"name": one.name, "address": one.address, "state": one.state, "counts": counted, "findings": one.findings,
         "about": {**dict.fromkeys(COLUMNS, ""), **one.about}}
        for one, counted in zip(seen, counts, strict=True)
    ]  # fmt: skip
    return template.render(
        hosts=hosts, columns=COLUMNS, severities=tuple(SEVERITIES.items()), totals=sum(counts, Counter()),
        most=max((each.total() for each in counts), default=0) or 1, seconds=seconds, inventories=inventories,
        when=when or f"{system.stamp()[:16].replace('T', ' ')} UTC", version=__version__,
    )  # fmt: skip
