"""`provision verify`: prove a database by using it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from provision.checks import host
from provision.cli._database import database_option
from provision.database import connect, describe, require_pooler
from provision.host.verify import prove
from provision.plan import record


@click.command("verify")
@database_option
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input, not from the URL.")
@click.option("--pooler", default="", help="Prove it again through a pooler: what of the URL differs (port=6432).")
@click.option("--record", "keep", is_flag=True, help="Note what was proved in this host's /etc/provision/host.json.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(url: str, password_stdin: bool, pooler: str, keep: bool, as_json: bool) -> None:
    """Log in, write a memory, find it by its vector, roll back; check tables and extensions."""
    shown = describe(url)
    if password_stdin:
        url = make_conninfo(url, password=sys.stdin.readline().rstrip("\n"))
    with connect(url, application="provision verify") as connection:
        proof = prove(connection)
    if pooler:
        with connect(make_conninfo(url, **conninfo_to_dict(pooler)), application="provision verify") as connection:
            require_pooler(connection)
            prove(connection)
    result = {"database": shown, "pooler": pooler, **asdict(proof)}
    facts = {key: result[key] for key in ("server", "extensions", "migration", "tables")}
    changed = record.note("verified", {**facts, "packages": host.ours()}) if keep else False
    if as_json:
        click.echo(json.dumps({**result, "record_changed": changed}))
        return
    click.echo(
        f"{shown}: PostgreSQL {proof.server}, migration {proof.migration}, {len(proof.tables)} tables, "
        + ", ".join(f"{name} {version}" for name, version in proof.extensions.items())
    )
