"""`provision metrics`: what no exporter tells of this host, as Prometheus reads it; a timer writes it each minute."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from provision import system
from provision.host.metrics.collect import collect


@click.command("metrics")
@click.option("--output", type=click.Path(path_type=Path), help="File that is replaced atomically [standard output].")
def command(output: Path | None) -> None:
    """Tell of backups, drills, archiving, certificates, migrations, headroom, bloat, HNSW, retention and pools.

    On the host, as root or postgres. What cannot be asked is left out, said on stderr and marked by
    provision_collector_success 0; exit 1 then, after everything else was written.
    """
    system.become()
    found = collect()
    if output is None:
        click.echo(found.text, nl=False)
    else:
        system.write(output, found.text, mode=0o644)
    for failure in found.failures:
        click.echo(f"not collected: {failure}", err=True)
    sys.exit(1 if found.failures else 0)
