"""Tell which version of the migrations a database has that nobody recorded it for. Does IO; needs pg_dump.

The schema `public` is dumped without owners and privileges, and compared with dumps of a scratch database after each
migration: equal, or refused with the difference. Rows are not looked at. The scratch database is made and dropped on
the same server, by a superuser.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

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
    """The version, how it was found, and whether it has to be recorded still."""

    version: int
    how: str
    record: bool


def recognise(settings: Settings, extensions: tuple[str, ...], make_runner: Callable[[Settings], Runner]) -> Recognised:
    """Find the version. Raises MigrationError when the schema is equal to none, or the recorded version is dirty."""
    state, ours = _recorded(settings)
    if state.dirty:
        raise MigrationError(
            "the database is in the middle of a migration",
            seen=f"version {state.version} is dirty",
            allowed="a clean version, or none",
            run="docs/migration-is-dirty.md, with the tool that left it so",
        )
    if ours:
        return Recognised(state.version, f"version {state.version}, as this toolkit recorded it", record=False)
    seen = _comparable(dump(settings.url, settings, OPTIONS))
    if state.version == NONE and not seen:
        return Recognised(NONE, "an empty schema: every migration will be applied", record=False)
    wanted = _dumps(settings, extensions, make_runner)
    versions = [state.version] if state.version != NONE else sorted(wanted, reverse=True)
    for version in versions:
        if wanted.get(version) == seen:
            known = state.version != NONE
            how = f"the schema is that of version {version}" + (", as schema_migrations says" if known else "")
            return Recognised(version, how, record=not known)
    raise _unlike(seen, {version: wanted[version] for version in versions if version in wanted}, state)


def _recorded(settings: Settings) -> tuple[State, bool]:
    with locked(settings, lambda _seconds, _others: None) as session:
        return session.ledger.state(), bool(session.ledger.records())


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


def _unlike(seen: str, wanted: dict[int, str], state: State) -> MigrationError:
    """Show the difference from the version that is nearest."""
    differences = {
        version: list(difflib.unified_diff(text.splitlines(), seen.splitlines(), f"version {version}", "seen",
                                           lineterm="", n=1))
        for version, text in wanted.items()
    }  # fmt: skip
    if not differences:
        return MigrationError(
            "the recorded version has no migration here", seen=f"version {state.version}", run=f"read {PAGE}"
        )
    version, lines = min(differences.items(), key=lambda item: len(item[1]))
    more = [f"... and {len(lines) - MOST_LINES} lines more"] if len(lines) > MOST_LINES else []
    return MigrationError(
        "the schema is not that of any migration, so its version is not guessed"
        if state.version == NONE
        else f"schema_migrations says version {state.version}, and the schema is not that",
        seen="\n".join([f"the least difference, from version {version}:", *lines[:MOST_LINES], *more]),
        allowed="a schema that is equal, or a version that you vouch for",
        run=f"mend the difference, or provision migrate force {version} on the host; see {PAGE}",
    )
