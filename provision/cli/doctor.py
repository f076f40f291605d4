"""`provision doctor`: deviations of a host or a database, why they matter, and the commands that fix them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import click

from provision.checks import doctor
from provision.cli._database import database_option
from provision.cli._echo import echo
from provision.cli._progress import working
from provision.errors import UsageError
from provision.quoting import visible
from provision.urls import describe


@click.command("doctor")
@database_option
@click.option("--fix", is_flag=True, help="Run the safe fixes, then check again. Root only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(url: str, fix: bool, as_json: bool) -> None:
    """Check this host (as root, without --database) or a database behind a URL. Read-only without --fix.

    Exit 3 while a finding needs action. Accepted: allowed on a development host, or accepted by name in the inventory.
    Unseen: the caller lacks the privilege to look.
    """
    plan = None if url else doctor.this_host()
    if fix and (plan is None or os.geteuid() != 0):
        raise UsageError("--fix works on a host, not on a URL", allowed="root on a host that site.yml has converged")
    with working("checking"):
        report = doctor.look_at(plan) if plan else doctor.look_from_afar(url, describe(url))
    if fix and plan:
        for words, succeeded, output in doctor.fix(report.findings):
            echo(f"{'done' if succeeded else 'failed'}: {words}" + ("" if succeeded else f"\n  {output}"), err=True)
        with working("checking again"):
            report = doctor.look_at(plan)
    if as_json:
        findings = [asdict(each) for each in report.findings]
        facts = {"about": report.about, "checks": report.checks, "findings": findings, "load": report.load}
        echo(json.dumps(facts, indent=2))
    else:
        counted = len(report.counted)
        echo("\n".join(str(each) for each in report.findings))
        if report.load:
            echo("\n".join(visible(line) for line in report.load))
        echo(f"{report.checks} checks, {counted} to fix, {len(report.findings) - counted} accepted or unseen")
    sys.exit(3 if report.counted else 0)
