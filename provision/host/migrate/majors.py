"""Verify migrations on scratch servers of two majors, and compare the schemas that they make. Does IO; needs pg_dump.

On each major: all migrations up, down and up again, as `verify` does, by an ordinary role that owns the database. Then
the schema of the older major is created on the newer one, as a major upgrade does, and compared with the schema that
the migrations made there. Both are dumped from the same server, so that a difference is one of the schema and not of
how a major prints it. Connects to no other server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql

from provision.database import ask, connect_pinned
from provision.errors import HostError, MigrationError, UsageError
from provision.host import scratch_server
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from provision.host.migrate.verify import Difference, Verified, compare, scratch, script, verify
from provision.system import run

INSTALLED = Path("/usr/lib/postgresql")
APPLICATION = "provision migrate verify"
_FOR_PSQL = re.compile(r"^\\(?:un)?restrict .*$", re.MULTILINE)


@dataclass(frozen=True)
class Server:
    """The programs of one major, and their full version."""

    major: int
    version: str
    programs: Path


@dataclass(frozen=True)
class Tried:
    """The outcome on one major: the extensions of the database, and what was verified or the error that ended it."""

    server: Server
    extensions: Mapping[str, str]
    verified: Verified | None = None
    error: MigrationError | None = None


@dataclass(frozen=True)
class Compared:
    """The outcome on both majors, the older first. `differences` is empty too if a migration failed."""

    tried: tuple[Tried, Tried]
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether the migrations work on both majors and make the same schema."""
        return not self.differences and all(each.verified and not each.verified.differences for each in self.tried)


@dataclass(frozen=True)
class Request:
    """Extensions that a superuser creates, as on a host, and roles without privileges; the first owns the database.

    `interrupted` returns the name of a received signal, or an empty string.
    """

    extensions: Sequence[str]
    roles: Sequence[str]
    interrupted: Callable[[], str] = lambda: ""


def find(major: int, given: Mapping[int, Path]) -> Server:
    """Find the programs of a major: `given`, or Debian's. Raises HostError with the package, UsageError."""
    programs = given.get(major, INSTALLED / str(major) / "bin")
    missing = [name for name in ("initdb", "postgres") if not (programs / name).exists()]
    if missing:
        raise HostError(
            f"PostgreSQL {major} is not installed on this machine",
            where=str(programs),
            seen=f"no {' and no '.join(missing)}; nothing was run",
            allowed=f"the server's programs, from any apt source, or --programs {major}=DIRECTORY",
            run=f"apt-get install postgresql-{major}",
        )
    words = run(programs / "postgres", "--version").stdout.split()
    version = next((word for word in words if word[0].isdigit()), "")
    if version.partition(".")[0] != str(major):
        raise UsageError(
            "the programs are of another major", where=str(programs), seen=version or "no version", allowed=str(major)
        )
    return Server(major, version, programs)


def compare_majors(
    settings: Settings,
    servers: tuple[Server, Server],
    request: Request,
    make_runner: Callable[[Settings, str], Runner],
) -> Compared:
    """Verify the migrations of `settings.path` on both servers, the older major first, and compare the schemas.

    `make_runner` gets settings and the name of the database whose data may be destroyed. Raises MigrationError if the
    run is interrupted, DatabaseError, HostError.
    """
    older, newer = servers
    settings = replace(settings, pg_dump=_pg_dump(newer))
    with _prepared(older, request) as url:
        first = _try(older, replace(settings, url=url), request, make_runner)
    with _prepared(newer, request) as url:
        second = _try(newer, replace(settings, url=url), request, make_runner)
        differences: list[Difference] = []
        if first.verified and second.verified:
            schemas = first.verified.schema, second.verified.schema
            differences = _moved(replace(settings, url=url), (older.major, newer.major), schemas, request)
    return Compared((first, second), tuple(differences))


def _pg_dump(newer: Server) -> Path | None:
    """Return the newer major's own pg_dump, which can dump both; None where its programs have none."""
    own = newer.programs / "pg_dump"
    return own if own.exists() else None


@contextmanager
def _prepared(server: Server, request: Request) -> Iterator[str]:
    with scratch_server.server(server.programs) as url:
        with connect_pinned(url, application=APPLICATION) as session:
            for role in dict.fromkeys(request.roles):
                try:
                    session.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
                except psycopg.Error as error:
                    raise UsageError("cannot create a role", where=f"--role {role}", seen=str(error).strip()) from None
        yield url


def _try(server: Server, settings: Settings, request: Request, make_runner: Callable[[Settings, str], Runner]) -> Tried:
    extensions = _available(settings.url, request.extensions)
    try:
        verified = verify(settings, tuple(request.extensions), make_runner, owner=request.roles[0])
    except MigrationError as error:
        if request.interrupted():
            raise
        return Tried(server, extensions, error=error)
    return Tried(server, extensions, verified)


def _available(url: str, wanted: Sequence[str]) -> dict[str, str]:
    """Return the versions of those extensions that this server can create."""
    with connect_pinned(url, application=APPLICATION) as session:
        rows = ask(session, "SELECT name, default_version FROM pg_available_extensions ORDER BY 1")
    return {str(name): str(version) for name, version in rows if name in wanted}


def _moved(settings: Settings, majors: tuple[int, int], schemas: tuple[str, str], request: Request) -> list[Difference]:
    """Create the older major's schema in a database of the newer one, and compare it with the newer one's own."""
    older, newer = majors
    with scratch(settings.url, tuple(request.extensions)) as (_, url):
        with connect_pinned(url, application=APPLICATION) as session:
            try:
                session.execute(_FOR_PSQL.sub("", schemas[0]).encode())
            except psycopg.Error as error:
                lines = tuple(str(error).strip().splitlines())
                return [Difference(f"the schema of PostgreSQL {older} cannot be created on {newer}", lines)]
        moved = script(url, settings)
    when = f"schema of PostgreSQL {newer}, compared with the schema of {older} moved to {newer}"
    return compare(when, moved, schemas[1])
