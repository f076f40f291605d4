"""`provision maintain`: retention, statistics and indexes of this host's database, as its timers do it."""

from __future__ import annotations

import json

import click

from provision import system
from provision.host.maintain import run
from provision.plan import load


@click.command("maintain")
@click.argument("jobs", nargs=-1, type=click.Choice(run.JOBS))
@click.option("--dry-run", "dry", is_flag=True, help="Say what would be done, with counts; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(jobs: tuple[str, ...], dry: bool, as_json: bool) -> None:
    """Delete what is past its retention, renew statistics, rebuild bloated indexes; on the host, as root or postgres.

    JOBS are sessions (expired ones), retention (activities, metrics, closed sessions, ANALYZE) and index; all three
    without a name. Each is kept in /var/lib/provision/maintain.json. Exit 3 when one failed; standing back from a
    migration, a standby or another run is no failure.
    """
    system.become()
    plan = load.load()
    done = []
    for job in jobs or run.JOBS:
        facts = run.run(plan, job, dry=dry, say=lambda text: click.echo(text, err=True))
        done.append(facts)
        if not dry:
            run.keep(facts)
    click.echo(
        json.dumps(done, default=str) if as_json else "\n".join(line for each in done for line in run.sentences(each))
    )
    for facts in done:
        run.alarm(facts)
