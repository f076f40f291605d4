"""`provision metrics`: metrics of this host that no exporter has; a timer writes them every minute."""

from __future__ import annotations

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
def command(output: Path | None) -> None:
    """Print metrics in Prometheus' text format; on the host, as root or postgres.

    Covers backups, restore tests, archiving, certificates, migrations, counter headroom, bloat, HNSW, retention and
    pools. A source that fails is reported on stderr and by provision_collector_success 0; the others are printed, and
    the exit code is 1.
    """
    system.become()
    found = collect()
    if output is None:
        echo(found.text, nl=False)
    else:
        system.write(output, found.text, mode=0o644)
    for failure in found.failures:
        echo(f"not collected: {failure}", err=True)
    sys.exit(1 if found.failures else 0)
