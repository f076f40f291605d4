"""`provision queries`: the statements that use most of this host's server."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from datetime import UTC, datetime
from typing import Any

import click

from provision import system
from provision.cli._echo import echo
from provision.database import connect, connect_pinned
from provision.host.queries import planned, snapshots
from provision.host.queries.ranking import MEASURES, Ranked, ranked
from provision.host.queries.statements import Reading, Statement, described, read
from provision.plan import load
from provision.plan.schema import Plan
from provision.quoting import visible

APPLICATION = "provision queries"
TIMEOUT_MS = 30_000
CUT = 200  # characters of a statement; --full shows all


@click.command("queries")
@click.option("--by", type=click.Choice(list(MEASURES)), default="total", show_default=True, help="Measure to sort by.")
@click.option("--since", default="reset", show_default=True, help="Start: reset, or an age such as 30m, 1h, 2d.")
@click.option("--limit", default=10, show_default=True, type=click.IntRange(1), help="Statements to print.")
@click.option("--plan", "query_id", default="", metavar="ID", help="Print the generic plan of a statement instead.")
@click.option("--full", is_flag=True, help="Do not truncate long statements.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(by: str, since: str, limit: int, query_id: str, full: bool, as_json: bool) -> None:
    """Show the statements that use most time, I/O, temporary files or WAL; as root or postgres.

    The statements are normalised: they have no constants. A comparison with an earlier moment uses the snapshots that
    provision metrics keeps every ten minutes, and this command too.
    """
    age = 0 if since == "reset" else snapshots.seconds(since)
    plan = load.load()
    system.become()
    with connect_pinned(_url(plan, plan.access.backup), application=APPLICATION, statement_timeout_ms=TIMEOUT_MS) as db:
        reading = read(db)
    if query_id:
        _plan(plan, reading, query_id, as_json)
        return
    earlier = snapshots.before(reading.at - age) if age else None
    snapshots.keep(reading)
    if age and earlier is None:
        echo("no snapshot yet: showing everything since the reset; repeat in ten minutes for a comparison", err=True)
    found = snapshots.difference(reading, earlier) if earlier else None
    begin = found.since if found else reading.reset
    if age and found and abs(begin - (reading.at - age)) > snapshots.INTERVAL_S + snapshots.MARGIN_S:
        echo(f"the nearest snapshot is of {_moment(begin)}", err=True)
    rows = ranked(found.statements if found else reading.statements, by, limit)
    if as_json:
        echo(json.dumps(_facts(reading, begin, by, rows), indent=2))
        return
    _show(reading, begin, rows, sys.maxsize if full else CUT)
    if found and found.unknown:
        echo(f"{found.unknown} rare statements are left out, because the snapshot lacks them", err=True)


def _url(plan: Plan, role: str) -> str:
    return plan.server.url(plan.access.database, role)


def _plan(plan: Plan, reading: Reading, query_id: str, as_json: bool) -> None:
    statement = planned.find(reading, query_id)
    with connect(_url(plan, plan.access.owner), application=APPLICATION) as session:
        lines = planned.explain(session, statement)
    if as_json:
        echo(json.dumps({"query_id": query_id, "statement": statement.text, "plan": lines}, indent=2))
        return
    echo("\n".join([visible(statement.text, lines=True), "", *lines]))


def _facts(reading: Reading, begin: float, by: str, rows: list[Ranked]) -> dict[str, Any]:
    return {
        "since": system.stamp(begin),
        "until": system.stamp(reading.at),
        "by": by,
        "tracked": len(reading.statements),
        "limit": reading.limit,
        "evictions": reading.evicted,
        "statements": [
            {
                "query_id": each.statement.query_id,
                "role": each.statement.role,
                "database": each.statement.database,
                "share": each.share,
                **described(each.statement.counters),
                "statement": each.statement.text,
            }
            for each in rows
        ],
    }


def _show(reading: Reading, begin: float, rows: list[Ranked], cut: int) -> None:
    echo(f"from {_moment(begin)} to {_moment(reading.at)}")
    titles = ("SHARE", "TOTAL", "CALLS", "MEAN", "ROWS", "READ", "TEMP", "WAL")
    echo("  ".join(title.rjust(9) for title in titles))
    width = max(shutil.get_terminal_size().columns, 80)
    for each in rows:
        used = described(each.statement.counters)
        cells = (
            f"{each.share:.1%}", _time(used["total_ms"]), f"{used['calls']:,.0f}", _time(used["mean_ms"]),
            f"{used['rows']:,.0f}", _size(used["read_mb"]), _size(used["temp_mb"]), _size(used["wal_mb"]),
        )  # fmt: skip
        echo("  ".join(cell.rjust(9) for cell in cells))
        echo(f"    {_who(each.statement)}")
        text = visible(" ".join(each.statement.text.split()))
        text = text if len(text) <= cut else f"{text[: cut - 3]}..."
        echo(textwrap.indent(textwrap.fill(text, width - 4), "    "))
    if not rows:
        echo("no statement used any")


def _who(statement: Statement) -> str:
    return visible(f"{statement.query_id}  {statement.role}@{statement.database}")


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%SZ}"


def _time(ms: float) -> str:
    for limit, size, unit in ((1, 0.001, "us"), (1000, 1, "ms"), (60_000, 1000, "s"), (3_600_000, 60_000, "min")):
        if ms < limit:
            return f"{ms / size:.3g} {unit}" if ms / size < 100 else f"{ms / size:.0f} {unit}"
    return f"{ms / 3_600_000:,.1f} h"


def _size(mb: float) -> str:
    return "-" if mb == 0 else f"{mb / 1024:,.1f} GB" if mb >= 1024 else f"{mb:.3g} MB" if mb < 100 else f"{mb:.0f} MB"
