"""`provision doctor`: what is wrong with a host or a database, why it matters, and the command that mends it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import click

from provision.checks import doctor
from provision.cli._database import database_option
from provision.database import describe
from provision.errors import UsageError


@click.command("doctor")
@database_option
@click.option("--fix", is_flag=True, help="Run the commands that are safe (marked so), then look again; as root.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(url: str, fix: bool, as_json: bool) -> None:
    """Look at this host (as root, without --database) or at a database behind a URL, and change nothing.

    Exit 3 when something is to be done. Accepted is what development may do and production may not, or what the
    inventory accepts by name; unseen is what the role that asks may not look at.
    """
    place = None if url else doctor.this_host()
    if fix and (place is None or os.geteuid() != 0):
        raise UsageError("--fix mends a host, not a URL", allowed="root on a host that site.yml has converged")
    report = doctor.look_at(place) if place else doctor.look_from_afar(url, describe(url))
    if fix and place:
        for words, well, said in doctor.mend(report.findings):
            click.echo(f"{'done' if well else 'failed'}: {words}" + ("" if well else f"\n  {said}"), err=True)
        report = doctor.look_at(place)
    if as_json:
        findings = [asdict(each) for each in report.findings]
        click.echo(json.dumps({"about": report.about, "checks": report.checks, "findings": findings}, indent=2))
    else:
        counted = len(report.counted)
        click.echo("\n".join(str(each) for each in report.findings))
        click.echo(f"{report.checks} checks, {counted} to mend, {len(report.findings) - counted} accepted or unseen")
    sys.exit(3 if report.counted else 0)
