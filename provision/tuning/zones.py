"""Names of time zones, judged by the time zone database of this machine. Reads it once."""

from __future__ import annotations

import difflib
import functools
import zoneinfo


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())


def unknown_zone(name: str, *, strict: bool = False) -> str:
    """Return why a time zone is refused, "" if it is not. A machine without the database refuses none.

    The server also reads POSIX rules and abbreviations; `strict` refuses these: a log line would show only the
    abbreviation, which does not determine its offset.
    """
    names = {each.lower(): each for each in _names()}
    if not names or name.lower() in names or not (strict or "/" in name):
        return ""
    near = difflib.get_close_matches(name.lower(), names, 1, 0.6)
    return "expected a name of the time zone database, such as Europe/Berlin or UTC" + (
        f"; did you mean {names[near[0]]}?" if near else ""
    )
