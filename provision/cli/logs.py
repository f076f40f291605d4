"""`provision logs`: slow statements, lock waits and errors of this host's server."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from provision.host import logs
from provision.plan import load

CUT = 300  # characters of a line: a statement may carry a vector of 20 kB


@click.command("logs")
@click.option("--slow", is_flag=True, help="Statements above log_min_duration_statement.")
@click.option("--locks", is_flag=True, help="Who waited for whom, deadlocks, lock timeouts.")
@click.option("--errors", is_flag=True, help="ERROR, FATAL and PANIC.")
@click.option("--since", "after", default="1h", show_default=True, help='An age (30m, 2h, 7d) or "2026-11-24 14:05".')
@click.option("--full", is_flag=True, help="Do not cut long lines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(slow: bool, locks: bool, errors: bool, after: str, full: bool, as_json: bool) -> None:
    """Find slow statements, lock waits and errors in the server's log, as root; without an option, all of them."""
    begin = logs.since(after, datetime.now(UTC))
    asked = {kind for kind, so in zip(logs.KINDS, (slow, locks, errors), strict=True) if so}
    wanted = asked or set(logs.KINDS)
    found = 0
    for entry in logs.read(logs.files(load.load().server.major, begin), begin):
        if not entry.kinds & wanted:
            continue
        found += 1
        if as_json:
            shown = {"at": entry.at.isoformat(), "pid": entry.pid, "who": entry.who, "level": entry.level}
            click.echo(json.dumps({**shown, "duration_ms": entry.duration_ms, "lines": entry.lines}))
            continue
        lines = [line if full or len(line) <= CUT else f"{line[:CUT]} ..." for line in entry.lines]
        click.echo(f"{entry.at:%Y-%m-%d %H:%M:%S%z} [{entry.pid}] {entry.who or '-'} {entry.level}: {lines[0]}")
        click.echo("".join(f"    {line}\n" for line in lines[1:]), nl=False)
    click.echo(f"{found} found since {begin:%Y-%m-%d %H:%M:%S%z}", err=True)
