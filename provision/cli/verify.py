"""`provision verify`: verify a database by using it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from psycopg.conninfo import make_conninfo

from provision import system, urls
from provision.checks import host, ports
from provision.cli._database import database_option
from provision.cli._echo import echo
from provision.cli._progress import working
from provision.database import connect, require_pooler
from provision.host import status
from provision.host.verify import prove, prove_timers
from provision.plan import load


@click.command("verify")
@database_option
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of the URL.")
@click.option("--pooler", default="", help="Verify again through a pooler, with these libpq parameters (port=6432).")
@click.option(
    "--record",
    "keep",
    is_flag=True,
    help="Verify ports and timers too, and keep the result in /var/lib/provision/verified.json.",
)
@click.option("--no-tables", is_flag=True, help="Of a worker of a fleet: verify the login and the extensions only.")
@click.option("--status", "with_status", is_flag=True, help="Add this host's status to the JSON object.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    url: str, password_stdin: bool, pooler: str, keep: bool, no_tables: bool, with_status: bool, as_json: bool
) -> None:
    """Log in, write a memory, find it by vector, roll back; check tables and extensions."""
    shown = urls.describe(url)
    if password_stdin:
        url = make_conninfo(url, password=sys.stdin.readline().rstrip("\n"))
    with working("verifying the database") as narrate:
        with connect(url, application="provision verify") as connection:
            proof = prove(connection, tables=not no_tables)
        if pooler:
            narrate("verifying through the pooler")
            with connect(
                make_conninfo(url, **urls.parsed(urls.read(pooler).url)), application="provision verify"
            ) as connection:
                require_pooler(connection)
                prove(connection, tables=not no_tables)
        if keep:
            narrate("verifying ports and timers")
            ports.prove(load.load())
            prove_timers(load.load())
    result = {"database": shown, "pooler": pooler, **asdict(proof)}
    facts = {key: result[key] for key in ("server", "extensions", "migration", "tables")}
    changed = system.keep("verified", {**facts, "packages": host.ours()}) if keep else False
    if as_json:
        facts = status.gather(for_controller=True) if with_status else {}
        report = {**facts, "lines": status.lines(facts)} if facts else {}
        report.pop("warnings", None)  # its lines have them
        echo(json.dumps({**result, **report, "changed": changed}))
        return
    echo(
        f"{shown}: PostgreSQL {proof.server}, migration {proof.migration}, {len(proof.tables)} tables, "
        + ", ".join(f"{name} {version}" for name, version in proof.extensions.items())
    )
