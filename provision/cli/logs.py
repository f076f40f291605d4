"""`provision logs`: slow statements, lock waits and errors in this host's PostgreSQL log."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import click

from provision.cli._echo import echo
from provision.host import logs
from provision.plan import load
from provision.quoting import visible

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
    skipped = Counter[tuple[Path, str]]()

    def skip(path: Path, why: str) -> None:
        skipped[path, why] += 1

    for entry in logs.read(logs.files(server.major, begin), begin, place, skip):
        if not entry.kinds & kinds:
            continue
        found += 1
        if as_json:
            shown = {"at": entry.at.isoformat(), "pid": entry.pid, "who": entry.who, "level": entry.level}
            echo(json.dumps({**shown, "duration_ms": entry.duration_ms, "lines": entry.lines}))
            continue
        # Further lines are indented: only the first one of a message looks like one.
        lines = [visible(line if full or len(line) <= CUT else f"{line[:CUT]} ...") for line in entry.lines]
        who = visible(entry.who) or "-"
        echo(f"{entry.at:%Y-%m-%d %H:%M:%S%z} [{entry.pid}] {who} {visible(entry.level)}: {lines[0]}")
        echo("".join(f"    {line}\n" for line in lines[1:]), nl=False)
    for (path, why), times in skipped.items():
        echo(f"skipped: {path}: {why}{f' ({times} times)' if times > 1 else ''}", err=True)
    echo(f"{found} found since {begin:%Y-%m-%d %H:%M:%S%z}", err=True)
