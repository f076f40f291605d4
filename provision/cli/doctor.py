"""`provision doctor`: what is wrong with a database, why it matters, and the command that mends it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from provision.checks import certificates, hardening, pooler
from provision.cli._database import database_option
from provision.database import connect


@click.command("doctor")
@database_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(url: str, as_json: bool) -> None:
    """Look at a database, from its host (as postgres) or from anywhere with a URL, and change nothing.

    Exit 3 when something is to be done. Accepted is what development may do and production may not; unseen is what the
    role that asks may not look at.
    """
    with connect(url, application="provision doctor", statement_timeout_ms=30_000) as connection:
        found = hardening.examine(connection)
    found += certificates.examine() + pooler.examine()
    checks = len(hardening.CHECKS) + len(certificates.CHECKS) + len(pooler.CHECKS)
    if as_json:
        click.echo(json.dumps({"checks": checks, "findings": [asdict(each) for each in found]}, indent=2))
    else:
        click.echo("\n".join(str(each) for each in found))
        counted = sum(each.counts for each in found)
        click.echo(f"{checks} checks, {counted} to mend, {len(found) - counted} accepted or unseen")
    sys.exit(3 if any(each.counts for each in found) else 0)
