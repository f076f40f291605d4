"""Detect the migration version of a database that has no recorded version. Does IO; needs pg_dump.

Dumps the schema `public` without owners and privileges, and compares it with dumps of a scratch database after each
migration. Refuses a schema that equals none of them, and shows the difference. Does not compare rows. A superuser
creates and drops the scratch database on the same server. In the database itself, whose objects belong to others, the
superuser's sessions pin every setting (see `pins`) and read tables without a query (see `plain`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from provision import pins
from provision.errors import MigrationError
from provision.host.migrate.directory import Directory
from provision.host.migrate.files import NONE
from provision.host.migrate.ledger import State
from provision.host.migrate.runner import Runner
from provision.host.migrate.session import locked
from provision.host.migrate.settings import Settings
from provision.host.migrate.verify import MOST_LINES, dump, scratch

PAGE = "docs/adopt-an-existing-database.md"
OPTIONS = ("--no-owner", "--no-privileges", "--schema=public")
_SCHEMA_ITSELF = re.compile(r"^(CREATE SCHEMA public;|COMMENT ON SCHEMA public .*)$")


@dataclass(frozen=True)
class Recognised:
    """The version, how it was detected, and whether it still has to be recorded."""

    version: int
    how: str
    record: bool


def recognise(settings: Settings, extensions: tuple[str, ...], make_runner: Callable[[Settings], Runner]) -> Recognised:
    """Detect the version. Raises MigrationError if the schema matches no version or the recorded version is dirty."""
    state, ours = _recorded(pinned(settings))
    if state.dirty:
        raise MigrationError(
            "a migration of this database is unfinished",
            seen=f"version {state.version} is dirty",
            allowed="a clean version or no version",
            run="repair it with the tool that ran it; see docs/migration-is-dirty.md",
        )
    if ours:
        return Recognised(state.version, f"version {state.version}, recorded by this toolkit", record=False)
    seen = _comparable(dump(pinned(settings).url, settings, OPTIONS))
    if state.version == NONE and not seen:
        return Recognised(NONE, "an empty schema: all migrations are pending", record=False)
    expected = _dumps(settings, extensions, make_runner)
    versions = [state.version] if state.version != NONE else sorted(expected, reverse=True)
    for version in versions:
        if expected.get(version) == seen:
            known = state.version != NONE
            how = f"the schema matches version {version}" + (", as recorded in schema_migrations" if known else "")
            return Recognised(version, how, record=not known)
    raise _unlike(seen, {version: expected[version] for version in versions if version in expected}, state)


def pinned(settings: Settings) -> Settings:
    """Return the settings for sessions of a superuser in a database whose owner may have stored settings for it."""
    given = str(conninfo_to_dict(settings.url).get("options") or "")
    options = f"{given} {pins.options({**pins.EVERYWHERE, **pins.SUPERUSER})}".strip()
    return replace(settings, url=make_conninfo(settings.url, options=options), schema=settings.schema or "public")


def _recorded(settings: Settings) -> tuple[State, bool]:
    with locked(settings, lambda _seconds, _others: None) as session:
        return session.ledger.peek()


def _dumps(
    settings: Settings, extensions: tuple[str, ...], make_runner: Callable[[Settings], Runner]
) -> dict[int, str]:
    found = {}
    with scratch(settings.url, extensions) as (_, url):
        here = replace(settings, url=url)
        for pair in Directory(settings.path).catalogue().pairs:
            make_runner(here).up(1)
            found[pair.version] = _comparable(dump(url, here, OPTIONS))
    return found


def _comparable(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not _SCHEMA_ITSELF.match(line))


def _unlike(seen: str, expected: dict[int, str], state: State) -> MigrationError:
    """Build the error that shows the difference from the closest version."""
    differences = {
        version: list(difflib.unified_diff(text.splitlines(), seen.splitlines(), f"version {version}", "seen",
                                           lineterm="", n=1))
        for version, text in expected.items()
    }  # fmt: skip
    if not differences:
        return MigrationError(
            "the recorded version has no migration file", seen=f"version {state.version}", run=f"see {PAGE}"
        )
    version, lines = min(differences.items(), key=lambda item: len(item[1]))
    more = [f"... and {len(lines) - MOST_LINES} more lines"] if len(lines) > MOST_LINES else []
    return MigrationError(
        "the schema matches no migration version"
        if state.version == NONE
        else f"schema_migrations records version {state.version}, but the schema differs from it",
        seen="\n".join([f"difference from the closest version, {version}:", *lines[:MOST_LINES], *more]),
        allowed="a schema that matches a version, or a version that you force",
        run=f"fix the difference, or run provision migrate force {version} on the host; see {PAGE}",
    )
