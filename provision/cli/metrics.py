"""`provision metrics`: metrics of this host that no exporter has; a timer writes them every minute."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from provision import system
from provision.cli._echo import echo
from provision.host.metrics.collect import collect


@click.command("metrics")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to replace atomically [default: standard output]."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: samples and failures.")
def command(output: Path | None, as_json: bool) -> None:
    """Print metrics in Prometheus' text format; on the host, as root or postgres.

    Covers backups, restore tests, archiving, certificates, migrations, counter headroom, bloat, HNSW, retention and
    pools. A source that fails is reported on stderr and by provision_collector_success 0; the others are printed, and
    the exit code is 1.
    """
    system.become()
    found = collect()
    text = (
        json.dumps({"metrics": found.facts(), "failures": found.failures}, indent=2) + "\n" if as_json else found.text
    )
    if output is None:
        echo(text, nl=False)
    else:
        system.write(output, text, mode=0o644)
    for failure in found.failures:
        echo(f"not collected: {failure}", err=True)
    sys.exit(1 if found.failures else 0)
