"""PostgreSQL's settings of every supported major, and the judgement of a user's values for them. Pure.

`settings.tsv` is pg_settings of majors 14 to 18 with the contrib libraries loaded (made by tests/catalogue.py, compared
with real servers by the tests). The controller refuses a mistyped name or value before it contacts a host. Only a
server that loads them can check the settings of other libraries.
"""

from __future__ import annotations

import difflib
import functools
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provision.tuning import lists
from provision.tuning.zones import unknown_zone

MEMORY = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
TIME = {"us": 0.001, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
"""Units that the server reads (guc.c), in bytes and in ms."""
TRUE, FALSE = ("on", "true", "yes", "1"), ("off", "false", "no", "0")
HIDDEN = {"on": TRUE, "off": FALSE, "debug2": ("debug",), "replica": ("archive", "hot_standby")}
"""Spellings of an enumeration's values that pg_settings does not list."""
OLD_NAMES = {"sort_mem": "work_mem", "vacuum_mem": "maintenance_work_mem"}
"""Names that the server still reads (map_old_guc_names)."""
SUCCESSORS = {"checkpoint_segments": "max_wal_size", "wal_keep_segments": "wal_keep_size"}
"""Settings that earlier releases removed, and their replacements."""
IN_SESSIONS = ("user", "superuser")
"""Contexts of settings that ALTER ROLE and ALTER DATABASE accept."""
CUSTOM = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)+")
NUMBER = re.compile(r"\s*([-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))\s*([A-Za-z]*)\s*")
ZONES = ("timezone", "log_timezone")
_DATA = "settings.tsv"


@dataclass(frozen=True)
class Known:
    """One row of pg_settings, for majors `since` to `until`. `unit` is pg_settings.unit; `values` of an enumeration."""

    name: str
    since: int
    until: int
    kind: str
    context: str
    unit: str
    least: str
    most: str
    values: tuple[str, ...]


@dataclass
class Judged:
    """Values in the server's spelling by its names, and the problems, each one sentence."""

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@functools.cache
def rows() -> tuple[Known, ...]:
    """Return every row of the catalogue."""
    data = pkgutil.get_data("provision.tuning", _DATA) or b""
    found = []
    for line in data.decode().splitlines()[1:]:
        name, since, until, kind, context, unit, least, most, values = line.split("\t")
        row = Known(
            name, int(since), int(until), kind, context, unit, least, most, tuple(values.split(",")) if values else ()
        )
        found.append(row)
    return tuple(found)


@functools.cache
def of(major: int) -> Mapping[str, Known]:
    """Return the settings of a major by lower-case name."""
    return {row.name.lower(): row for row in rows() if row.since <= major <= row.until}


def needs_restart(name: str, major: int) -> bool:
    """Return whether a new value takes effect only at a restart."""
    row = of(major).get(name.lower())
    return row is not None and row.context == "postmaster"


def judge(where: str, given: Mapping[Any, Any], major: int, *, role: bool = False) -> Judged:
    """Judge settings of a role, or of the server (then a value may be a mapping of value and reason)."""
    done = Judged()
    seen: dict[str, str] = {}
    for key, value in given.items():
        name, problem = _name(str(key), major, role=role)
        label = f"{where}.{key}"
        if not problem and name.lower() in seen:
            problem = f"sets {name} again, which {where}.{seen[name.lower()]} sets: keep one of them"
        seen.setdefault(name.lower(), str(key))
        wrapped = isinstance(value, Mapping) and not role and "value" in value
        text = ""
        if not problem:
            text, problem = _value(of(major).get(name.lower()), name, value["value"] if wrapped else value)
        if problem:
            done.problems.append(f"{label} {problem}")
        elif wrapped:
            done.values[name] = {**value, "value": text}
        elif isinstance(value, Mapping):
            done.values[name] = value  # malformed, which tuning refuses
        else:
            done.values[name] = text
    return done


def _name(name: str, major: int, *, role: bool) -> tuple[str, str]:
    """Return the server's spelling of a name, and why the setting cannot be used there ("" if it can)."""
    known = of(major)
    plain = OLD_NAMES.get(name.lower(), name.lower())
    row = known.get(plain)
    if row is None:
        return (name, "") if role and plain in ("role", "session_authorization") else (name, _unknown(name, major))
    if row.context == "internal":
        return row.name, "cannot be set: the server reports it; remove the line"
    if role and row.context not in IN_SESSIONS:
        return row.name, "cannot be set for a role, only for the server: set it in postgresql_settings"
    return row.name, ""


def _unknown(name: str, major: int) -> str:
    known, plain = of(major), name.lower()
    others = [row for row in rows() if row.name.lower() == plain]
    if others:
        spans = " and ".join(
            str(row.since) if row.since == row.until else f"{row.since} to {row.until}" for row in others
        )
        return f"is a setting of PostgreSQL {spans}, postgresql_version is {major}: remove the line"
    if plain in SUCCESSORS:
        return f"is not a setting of PostgreSQL {major}: {SUCCESSORS[plain]} replaced it"
    families = {each.partition(".")[0] for each in known if "." in each}
    if CUSTOM.fullmatch(name) and plain.partition(".")[0] not in families:
        near = difflib.get_close_matches(plain.partition(".")[0], families, 1, 0.85)
        return (
            f"is not a setting of PostgreSQL {major}: did you mean {near[0]}.{plain.partition('.')[2]}?" if near else ""
        )
    if "." in name and not CUSTOM.fullmatch(name):
        return "is not a setting's name: expected letters, digits, _ and $ around the dot"
    near = difflib.get_close_matches(plain, known, 1, 0.7)
    hint = f"did you mean {known[near[0]].name}?" if near else f"SHOW ALL on PostgreSQL {major} lists them"
    return f"is not a setting of PostgreSQL {major}: {hint}"


def _value(row: Known | None, name: str, value: Any) -> tuple[str, str]:
    """Return a value in the server's spelling, and the problem ("" if there is none)."""
    shown = repr(value)[:60]
    if isinstance(value, Mapping):
        return "", "" if row else f"is {shown}: expected one value"
    if value is None:
        return "", "is null: expected a value, or remove the line"
    if isinstance(value, (list, tuple)):
        if any(isinstance(each, (Mapping, list, tuple)) or each is None for each in value):
            return "", f"is {shown}: expected a list of names"
        names = [_text(each) for each in value]
        if lists.is_quoted(name):
            text = lists.text(names)
        elif row is None or row.kind == "string":
            text = ", ".join(names)
        else:
            return "", f"is {shown}: expected one value, not a list"
    elif lists.is_quoted(name):
        if isinstance(value, (bool, int, float)):
            return "", f"is {shown}: expected a list of names"
        try:
            text = lists.text(lists.elements(name, value))
        except ValueError:
            return "", f"is {shown}: expected names separated by commas, or a list"
    else:
        text = _text(value)
    if any(ord(character) < 32 or character == "\x7f" for character in text):
        return "", f"is {shown}: expected one line without control characters"
    problem = ""
    if row is not None:
        judged = {"bool": _bool, "enum": _enum, "integer": _number, "real": _number}.get(row.kind)
        if judged:
            text, problem = judged(row, text)
        elif name.lower() in ZONES:
            problem = unknown_zone(text, strict=name.lower() == "log_timezone")
    return text, f"is {shown}: {problem}" if problem else ""


def _text(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _bool(row: Known, text: str) -> tuple[str, str]:
    del row
    plain = text.strip().lower()
    matches = {words[0] for words in (TRUE, FALSE) if plain and any(word.startswith(plain) for word in words)}
    return (matches.pop(), "") if len(matches) == 1 else (text, "expected on or off")


def _enum(row: Known, text: str) -> tuple[str, str]:
    plain = text.strip().lower()
    for value in row.values:
        if plain == value.lower() or plain in HIDDEN.get(value, ()):
            return value, ""
    near = difflib.get_close_matches(plain, row.values, 1)
    return text, f"expected {', '.join(row.values)}" + (f"; did you mean {near[0]}?" if near else "")


def _number(row: Known, text: str) -> tuple[str, str]:
    kind = "a number" if row.kind == "real" else "an integer"
    base = re.fullmatch(r"(\d*)(\w+)", row.unit)
    units = {} if base is None else MEMORY if base[2] in MEMORY else TIME
    allowed = kind + (f" with a unit ({', '.join(units)}; without one: {row.unit})" if units else "")
    match = NUMBER.fullmatch(text)
    if match is None:
        return text, f"expected {allowed}"
    digits, unit = match.groups()
    if unit and unit not in units:
        near = [each for each in units if each.lower() == unit.lower()]
        return text, f"expected {allowed}" + (f"; write {digits}{near[0]}" if near else "")
    number = float(int(digits, 16)) if "x" in digits.lower() else float(digits)
    if unit and base is not None:
        number *= units[unit] / (int(base[1] or 1) * units[base[2]])
    number = float(round(number)) if row.kind == "integer" else number
    if not float(row.least) <= number <= float(row.most):
        return text, f"expected {row.least} to {row.most}" + (f" {row.unit}" if units else "")
    return (str(int(number)) if row.kind == "integer" and not unit else f"{digits}{unit}"), ""
