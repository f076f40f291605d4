"""`provision logs`: slow statements, lock waits and errors in this host's PostgreSQL log."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from provision.host import logs
from provision.plan import load

CUT = 300  # longest line in characters: a statement may contain a 20 kB vector


@click.command("logs")
@click.option("--slow", is_flag=True, help="Statements slower than log_min_duration_statement.")
@click.option("--locks", is_flag=True, help="Lock waits, deadlocks and lock timeouts.")
@click.option("--errors", is_flag=True, help="ERROR, FATAL and PANIC.")
@click.option(
    "--since", "after", default="1h", show_default=True, help='Start: an age (30m, 2h, 7d) or "2026-11-24 14:05".'
)
@click.option("--full", is_flag=True, help="Do not truncate long lines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(slow: bool, locks: bool, errors: bool, after: str, full: bool, as_json: bool) -> None:
    """Find slow statements, lock waits and errors in the server's log, as root; all three by default."""
    begin = logs.since(after, datetime.now(UTC))
    requested = {kind for kind, so in zip(logs.KINDS, (slow, locks, errors), strict=True) if so}
    kinds = requested or set(logs.KINDS)
    found = 0
    server = load.load().server
    place = logs.zone(server.configuration, server.data)
    for entry in logs.read(logs.files(server.major, begin), begin, place):
        if not entry.kinds & kinds:
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
