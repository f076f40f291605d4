"""`provision maintain`: retention, statistics and indexes of this host's database, as its timers run it."""

from __future__ import annotations

import json

import click

from provision import system
from provision.cli._echo import echo
from provision.cli._progress import working
from provision.host.maintain import run, tenants
from provision.plan import load


@click.command("maintain")
@click.argument("jobs", nargs=-1, type=click.Choice(run.JOBS))
@click.option("--dry-run", "dry", is_flag=True, help="Count what would be done; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(jobs: tuple[str, ...], dry: bool, as_json: bool) -> None:
    """Apply retention, run ANALYZE, rebuild bloated indexes; on the host, as root or postgres.

    Each job runs in the main database's own tables, then in those of every tenant.

    JOBS are sessions (delete expired ones), retention (the plan's rules, and ANALYZE) and index; default: all three.
    Results are kept in /var/lib/provision/maintain.json. Exit 3 if a job failed. A job is skipped, which is no failure,
    on a standby, during a migration and during another run.
    """
    system.become()
    plan = load.load()
    done = []
    for job in jobs or run.JOBS:
        with working(f"maintenance {job}") as narrate:
            facts = run.run(plan, job, dry=dry, say=narrate)
            facts = tenants.run_all(plan, facts, dry=dry, say=narrate)
        done.append(facts)
        if not dry:
            run.keep(facts)
    echo(json.dumps(done, default=str) if as_json else "\n".join(line for each in done for line in run.sentences(each)))
    for facts in done:
        run.alarm(facts)
