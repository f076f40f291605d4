"""Run migrations up, down and up again on a scratch database, and compare the schemas. Does IO; needs pg_dump.

The database is made and dropped here, on the server that the URL leads to, by a role that may do so and may create
extensions. What is compared is a normalised `pg_dump --schema-only` without our own two tables: after all the way
down it must be what it was before, and after the second way up what it was after the first.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from provision.database import connect
from provision.errors import MigrationError
from provision.host.migrate.ledger import HISTORY_SUFFIX
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from provision.host.migrate.steps import Step

MOST_LINES = 40
"""Lines of a difference that are shown: the first difference is the one that matters."""

_NOISE = re.compile(r"^(--.*|SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*|)$")


@dataclass(frozen=True)
class Difference:
    """Two dumps that should be equal and are not."""

    when: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """What was run, and the differences; none is what is wanted."""

    database: str
    done: tuple[tuple[Step, float], ...]
    differences: tuple[Difference, ...]


def verify(settings: Settings, extensions: tuple[str, ...], make_runner: Callable[[Settings, str], Runner]) -> Verified:
    """Verify the migrations of `settings.path` on a scratch database of the server that `settings.url` leads to."""
    with scratch(settings.url, extensions) as (name, url):
        settings = replace(settings, url=url)
        done: list[tuple[Step, float]] = []

        def run(direction: str) -> str:
            runner = make_runner(settings, name)
            done.extend((runner.up() if direction == "up" else runner.down()).done)
            return dump(url, settings)

        empty = dump(url, settings)
        full = run("up")
        found = _compare("after up and down, against before", empty, run("down"))
        if not found:  # a second way up would only stumble over what the way down left
            found = _compare("after up, down and up, against after up", full, run("up"))
    return Verified(name, tuple(done), tuple(found))


@contextmanager
def scratch(url: str, extensions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Give the name and the URL of an empty database on the same server, with the extensions it has; drop it after."""
    name = f"provision_verify_{secrets.token_hex(6)}"
    with connect(url, application="provision migrate verify") as administrator:
        available = {
            str(row[0]) for row in administrator.execute("SELECT name FROM pg_available_extensions").fetchall()
        }
        try:
            administrator.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege as error:
            raise MigrationError(
                "cannot make a scratch database",
                seen=str(error).strip(),
                allowed="the URL of a role that may create databases and extensions",
                run="provision migrate verify --scratch-url postgresql:///postgres?user=postgres",
            ) from None
        try:
            here = make_conninfo("", **{**conninfo_to_dict(url), "dbname": name})
            with connect(here, application="provision migrate verify") as connection:
                for extension in sorted(available & set(extensions)):
                    connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension)))
            yield name, here
        finally:
            administrator.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def dump(url: str, settings: Settings, options: tuple[str, ...] = ()) -> str:
    """Dump the schema of a database without what differs from run to run: comments, settings, our own tables.

    `options` are further ones of pg_dump. Raises MigrationError.
    """
    parameters = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    environment = {f"PG{_VARIABLES[key]}": value for key, value in parameters.items() if key in _VARIABLES}
    own = [f"--exclude-table=*.{settings.table}", f"--exclude-table=*.{settings.table}{HISTORY_SUFFIX}*"]
    done = subprocess.run(  # noqa: S603 - the password is in the environment, where no process list shows it
        [_pg_dump(), "--schema-only", "--no-password", *own, *options],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise MigrationError(
            "pg_dump failed", seen=done.stderr.strip()[:500], allowed="a pg_dump of the server's major or newer"
        )
    return "\n".join(line for line in done.stdout.splitlines() if not _NOISE.match(line))


_VARIABLES = {
    "host": "HOST",
    "hostaddr": "HOSTADDR",
    "port": "PORT",
    "user": "USER",
    "password": "PASSWORD",
    "passfile": "PASSFILE",
    "dbname": "DATABASE",
    "sslmode": "SSLMODE",
    "sslrootcert": "SSLROOTCERT",
    "sslcert": "SSLCERT",
    "sslkey": "SSLKEY",
    "options": "OPTIONS",
}


def _pg_dump() -> str:
    """Find the newest pg_dump: it can dump every older server."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"), key=lambda path: int(path.parts[4]))
    found = str(installed[-1]) if installed else shutil.which("pg_dump")
    if found is None:
        raise MigrationError(
            "pg_dump is not here", allowed="PostgreSQL's client programs", run="apt-get install postgresql-client"
        )
    return found


def _compare(when: str, wanted: str, seen: str) -> list[Difference]:
    lines = difflib.unified_diff(wanted.splitlines(), seen.splitlines(), "wanted", "seen", lineterm="", n=1)
    shown = list(lines)
    if len(shown) > MOST_LINES:
        shown = [*shown[:MOST_LINES], f"... and {len(shown) - MOST_LINES} lines more"]
    return [Difference(when, tuple(shown))] if shown else []
