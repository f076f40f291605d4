"""`provision bench`: throughput and latency of a database, to compare settings."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from provision.cli._database import database_option
from provision.cli._echo import echo
from provision.errors import DatabaseError, HostError, UsageError

if TYPE_CHECKING:
    from provision.controller.bench import Sizes


def _packages() -> None:
    """Raise HostError without the packages of the extra `bench`, which `make setup` leaves out."""
    missing = [name for name in ("numpy", "plotly") if importlib.util.find_spec(name) is None]
    if missing:
        raise HostError(
            "packages of the benchmark are not installed",
            seen=f"no {' and no '.join(missing)}",
            allowed="in the project's clone, with its constraints.txt",
            run=f"{sys.executable} -m pip install -c constraints.txt -e '.[bench]'",
        )


def _require_writable(folder: Path) -> None:
    """Make the directory of the report. Raises UsageError before the benchmark, rather than lose its results."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            "the report cannot be written", where=str(folder), seen=error.strerror or str(error),
            allowed="a directory in which this user can make files",
        ) from None  # fmt: skip


def _settings(url: str, sizes: Sizes, report: Path | None, *, confirmed: bool, as_json: bool) -> None:
    import psycopg

    from provision.controller.bench import comparison, results, settings

    try:
        found = settings.compare(url, sizes, report, confirmed=confirmed, tell=lambda text: echo(text, err=True))
    except psycopg.Error as error:
        raise DatabaseError("the second server refused a statement", seen=str(error).strip()) from error
    if report is not None:
        for path in comparison.write(found, settings.STOCK, report):
            echo(f"wrote {path}", err=True)
    echo(json.dumps(dataclasses.asdict(found)) if as_json else results.text(found, settings.STOCK))


@click.command("bench")
@database_option
@click.option(
    "--report", type=click.Path(path_type=Path, file_okay=False), help="Directory for bench.html and bench.json."
)
@click.option("--vectors", type=click.IntRange(200), default=20_000, show_default=True, help="Vectors in the table.")
@click.option("--scale", type=click.IntRange(1), default=10, show_default=True, help="pgbench scale factor.")
@click.option("--seconds", type=click.FloatRange(1), default=10, show_default=True, help="Duration of each stage.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Concurrent clients.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Rounds of the stages.")
@click.option(
    "--compare",
    "compared",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Earlier bench.json: print ratios to it, with intervals from five rounds or more.",
)
@click.option(
    "--settings",
    "of_settings",
    is_flag=True,
    help="Compare this server's settings with PostgreSQL's defaults and prod, on a second server beside it.",
)
@click.option("--seed", type=int, default=42, show_default=True, help="Seed of the random vectors.")
@click.option("--yes", is_flag=True, help="Allow a production database with data.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    url: str,
    report: Path | None,
    vectors: int,
    scale: int,
    seconds: float,
    clients: int,
    rounds: int,
    compared: Path | None,
    of_settings: bool,
    seed: int,
    yes: bool,
    as_json: bool,
) -> None:
    """Benchmark pgbench, HNSW builds and searches, and a mixed agent load, in a temporary schema.

    With --settings, the same on a second server with the settings of this one, with PostgreSQL's defaults and with
    those of profile prod, in turn: on the database's host, as root, connected as a superuser.
    """
    from rich.console import Console
    from rich.progress import Progress, TaskID

    _packages()
    if report is not None:
        _require_writable(report)
    from provision.controller.bench import Sizes, bench
    from provision.controller.bench.compare import compare, earlier, lines
    from provision.controller.bench.report import write

    sizes = Sizes(scale=scale, vectors=vectors, seconds=seconds, clients=clients, seed=seed, rounds=rounds)
    if of_settings:
        if compared:
            raise UsageError("--compare and --settings exclude each other", seen=str(compared), allowed="one of them")
        _settings(url, sizes, report, confirmed=yes, as_json=as_json)
        return
    before = earlier(compared, sizes) if compared else []
    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True)) as bars:

        def show(stage: str, done: int, whole: int) -> None:
            title = stage if whole == 1 or stage.startswith(("load", "recall")) else "run pgbench"
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=whole)
            bars.update(tasks[title], completed=done, description=title if title == stage else f"{title}: {stage}")

        found = bench(url, sizes, confirmed=yes, progress=show)
    found.compared = compare(found, before) if before else {}
    if report is not None:
        for path in write(found, report):
            echo(f"wrote {path}", err=True)
    if as_json:
        echo(json.dumps(found.as_json()))
        return
    echo(f"{'HNSW build':20}{found.build_s:10.1f} s")
    for name, rate in found.rates.items():
        echo(f"{name:20}{rate.tps:10,.0f} /s   p50 {rate.p50:.2f}  p95 {rate.p95:.2f}  p99 {rate.p99:.2f} ms")
    echo("recall: " + ", ".join(f"{value:.3f} at ef_search {ef}" for ef, value in found.recall.items()))
    for line in lines(found.compared) if before else ():
        echo(line)
    for row in found.lost:
        echo(f"warning: the planner avoids the index at ef_search {row.ef_search}: {row.plan}; {row.fix}")
