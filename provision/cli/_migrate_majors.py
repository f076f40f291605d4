"""`provision migrate verify --from MAJOR --to MAJOR`: options and result. Prints."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from provision.cli._migrate import Call
from provision.compatibility import POSTGRESQL
from provision.errors import UsageError
from provision.host.migrate.majors import Compared, Request, Tried, compare_majors, find
from provision.host.migrate.runner import Runner
from provision.host.migrate.verify import Difference
from provision.plan.packages import EXTENSIONS

MAJORS = click.IntRange(min(POSTGRESQL), max(POSTGRESQL))


def majors(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a comparison of two majors, which the command gets as `two`: None unless both are given."""

    @click.option("--from", "older", type=MAJORS, help="Use scratch servers of two majors; the older one.")
    @click.option("--to", "newer", type=MAJORS, help="The newer major.")
    @click.option("--programs", multiple=True, metavar="MAJOR=DIRECTORY",
                  help="Programs of a major [/usr/lib/postgresql/MAJOR/bin]; repeatable.")  # fmt: skip
    @click.option("--role", "roles", multiple=True, default=("minion", "minion_app", "minion_readonly"),
                  show_default=True,
                  help="Role of the scratch servers; the first runs the migrations; repeatable.")  # fmt: skip
    @functools.wraps(function)
    def wrapped(
        *words: Any, older: int | None, newer: int | None, programs: tuple[str, ...], roles: tuple[str, ...], **own: Any
    ) -> None:
        url = own["scratch_url"]
        if older is None and newer is None and url:
            function(*words, two=None, **own)
            return
        if url or older is None or newer is None or older >= newer:
            raise UsageError(
                "a scratch server is missing" if older is None and newer is None else "cannot verify on these servers",
                seen=f"--from {older or 'missing'} --to {newer or 'missing'}{' --scratch-url' if url else ''}",
                allowed="--scratch-url URL, or --from and --to with the older major first",
                run="provision migrate verify --from 15 --to 17",
            )
        function(*words, two=Two(older, newer, _given(programs), roles), **own)

    return wrapped


@dataclass(frozen=True)
class Two:
    """The two majors of a call, older first, their programs where not Debian's, and the roles."""

    older: int
    newer: int
    programs: dict[int, Path]
    roles: tuple[str, ...]

    def verify(self, call: Call, extensions: tuple[str, ...]) -> None:
        """Run the comparison, print its result, and exit 1 if it is not sound."""
        servers = find(self.older, self.programs), find(self.newer, self.programs)
        found = compare_majors(
            call.settings,
            servers,
            Request(extensions, self.roles, lambda: call.signal),
            lambda settings, name: Runner(settings, call.narrator, lambda: call.signal, name),
        )
        call.result(_values(found), _text(found, extensions))
        sys.exit(0 if found.ok else 1)


def _given(words: tuple[str, ...]) -> dict[int, Path]:
    found = {}
    for word in words:
        major, _, path = word.partition("=")
        if not major.isdecimal() or not path:
            raise UsageError(
                "cannot read --programs", seen=word, allowed="MAJOR=DIRECTORY", run="--programs 17=/opt/17/bin"
            )
        found[int(major)] = Path(path).absolute()
    return found


def differences(found: tuple[Difference, ...]) -> list[dict[str, Any]]:
    """Return differences for JSON output."""
    return [{"when": each.when, "lines": list(each.lines)} for each in found]


def lines(found: tuple[Difference, ...]) -> list[str]:
    """Return differences as text."""
    return [f"{each.when}:\n" + "\n".join(each.lines) for each in found]


def _values(found: Compared) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "majors": [_major(each) for each in found.tried],
        "differences": differences(found.differences),
    }


def _major(tried: Tried) -> dict[str, Any]:
    done = tried.verified.done if tried.verified else ()
    error = tried.error
    return {
        "major": tried.server.major,
        "version": tried.server.version,
        "extensions": dict(tried.extensions),
        "steps": len(done),
        "seconds": round(sum(took for _, took in done), 3),
        "differences": differences(tried.verified.differences if tried.verified else ()),
        "error": {"what": error.what, "seen": error.seen} if error else None,
    }


def _text(found: Compared, extensions: tuple[str, ...]) -> str:
    parts = [part for tried in found.tried for part in _told(tried, extensions)]
    if all(tried.verified for tried in found.tried):
        parts += lines(found.differences)
        older, newer = (tried.server.major for tried in found.tried)
        parts.append(f"schemas of {older} and {newer}: {'different' if found.differences else 'equal'}")
    return "\n".join(parts)


def _told(tried: Tried, extensions: tuple[str, ...]) -> list[str]:
    major = f"PostgreSQL {tried.server.version}"
    shown = ", ".join(f"{name} {tried.extensions.get(name, 'not installed')}" for name in extensions)
    head = f"{major} ({shown})" if shown else major
    if own := tried.verified:
        result = f"{len(own.done)} steps up, down and up again: {len(own.differences)} differences"
        return [*lines(own.differences), f"{head}: {result}"]
    missing = [EXTENSIONS[name].package for name in extensions if name in EXTENSIONS and name not in tried.extensions]
    install = [f"install the extension: apt-get install {name}".format(major=tried.server.major) for name in missing]
    error = [tried.error.what, *tried.error.seen.split("; ")] if tried.error else []
    return [f"{head}: failed", *(f"  {each}" for each in (*error, *install))]
