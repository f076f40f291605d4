"""Run all migrations up, down and up again on a scratch database, and compare the schemas. Does IO; needs pg_dump.

Creates and drops the database on the server of the URL, whose role must be able to create databases and extensions.
Compares normalised `pg_dump --schema-only` output without the version and history tables: the schema after down must
equal the empty one, and the schema after the second up must equal that after the first.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from provision.database import Connection, connect, connect_pinned
from provision.errors import MigrationError
from provision.host import scratch as scratches
from provision.host.migrate.ledger import HISTORY_SUFFIX
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from provision.host.migrate.steps import Step
from provision.plan import names
from provision.system import run

MOST_LINES = 40
"""Longest difference shown, in lines: the first difference matters most."""

_NOISE = re.compile(r"^(--.*|SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*|)$")


@dataclass(frozen=True)
class Difference:
    """Two dumps that should be equal but differ."""

    when: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """The steps that ran, the differences (none if all steps are reversible), and the schema after the first up."""

    database: str
    done: tuple[tuple[Step, float], ...]
    differences: tuple[Difference, ...]
    schema: str


def verify(
    settings: Settings,
    extensions: tuple[str, ...],
    make_runner: Callable[[Settings, str], Runner],
    owner: str = "",
) -> Verified:
    """Verify the migrations of `settings.path` on a scratch database on the server of `settings.url`.

    `owner` owns the database and runs the migrations; without it, the URL's role does.
    """
    with scratch(settings.url, extensions, owner) as (name, url):
        settings = replace(settings, url=url)
        done: list[tuple[Step, float]] = []

        def run(direction: str) -> str:
            runner = make_runner(settings, name)
            done.extend((runner.up() if direction == "up" else runner.down()).done)
            return script(url, settings)

        empty = script(url, settings)
        full = run("up")
        found = compare("after up and down, compared with before", empty, run("down"))
        if not found:  # a second up would fail on leftovers of the down files
            found = compare("after up, down and up, compared with after up", full, run("up"))
    return Verified(name, tuple(done), tuple(found), full)


@contextmanager
def scratch(url: str, extensions: tuple[str, ...], owner: str = "") -> Iterator[tuple[str, str]]:
    """Create an empty database with the available extensions, yield its name and URL, and drop it afterwards.

    With an `owner`, the URL is that role's, and database and schema public are as on a host.
    """
    name = names.scratch("provision", "verify")
    # The URL's own database may be one that is being adopted, with its owner's settings and functions.
    with connect_pinned(url, application="provision migrate verify") as administrator:
        available = {
            str(row[0]) for row in administrator.execute("SELECT name FROM pg_available_extensions").fetchall()
        }
        try:
            made = scratches.create(administrator, name)
        except psycopg.errors.InsufficientPrivilege as error:
            raise MigrationError(
                "cannot create a scratch database",
                seen=str(error).strip(),
                allowed="a URL whose role can create databases and extensions",
                run="provision migrate verify --scratch-url postgresql:///postgres?user=postgres",
            ) from None
        try:
            here = make_conninfo("", **{**conninfo_to_dict(url), "dbname": name})
            with connect(here, application="provision migrate verify") as connection:
                for extension in sorted(available & set(extensions)):
                    connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension)))
                if owner:
                    _give(connection, name, owner)
            yield name, make_conninfo(here, user=owner) if owner else here
        finally:
            scratches.drop(administrator, made)


def _give(connection: Connection, database: str, owner: str) -> None:
    role = sql.Identifier(owner)
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(database), role))
    connection.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(role))
    connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # 14 grants it


def dump(url: str, settings: Settings, options: tuple[str, ...] = ()) -> str:
    """Dump the schema of a database as `script` does, without comments and settings. Raises MigrationError."""
    return _comparable(script(url, settings, options))


def _comparable(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not _NOISE.match(line))


def script(url: str, settings: Settings, options: tuple[str, ...] = ()) -> str:
    """Return pg_dump's script that creates the schema of a database without the version and history tables.

    `options` are additional options of pg_dump. Raises MigrationError.
    """
    parameters = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    environment = {f"PG{_VARIABLES[key]}": value for key, value in parameters.items() if key in _VARIABLES}
    own = [f"--exclude-table=*.{settings.table}", f"--exclude-table=*.{settings.table}{HISTORY_SUFFIX}*"]
    # The password is in the environment, where no process list shows it.
    words = (settings.pg_dump or _pg_dump(), "--schema-only", "--no-password", *own, *options)
    done = run(*words, environment=environment, check=False)
    if not done.ok:
        raise MigrationError(
            "pg_dump failed",
            where=str(words[0]),
            seen=done.stderr.strip()[:500],
            allowed="a pg_dump of the server's major version or newer",
        )
    return done.stdout


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
    """Find the newest pg_dump, which can dump every older server."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"), key=lambda path: int(path.parts[4]))
    found = str(installed[-1]) if installed else shutil.which("pg_dump")
    if found is None:
        raise MigrationError(
            "pg_dump is not installed", allowed="PostgreSQL's client programs", run="apt-get install postgresql-client"
        )
    return found


def compare(when: str, expected: str, seen: str) -> list[Difference]:
    """Return the difference between two scripts of `script` as a list of one, or an empty one."""
    left, right = (_comparable(each).splitlines() for each in (expected, seen))
    shown = list(difflib.unified_diff(left, right, "expected", "seen", lineterm="", n=1))
    if len(shown) > MOST_LINES:
        shown = [*shown[:MOST_LINES], f"... and {len(shown) - MOST_LINES} more lines"]
    return [Difference(when, tuple(shown))] if shown else []
