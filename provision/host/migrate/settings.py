"""Options of a run: our own, and those that golang-migrate reads from the database URL. Pure.

golang-migrate's URL may carry `x-migrations-table`, `x-migrations-table-quoted`, `x-statement-timeout` (ms) and
`x-multi-statement`. A lock_timeout or statement_timeout in the URL replaces our default; an option of the command
replaces both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from provision import urls
from provision.errors import UsageError
from provision.host.migrate.evidence import BACKUP

SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}

WAIT_S = 60.0
"""Longest wait for another runner: enough for parallel deployments, short enough to report a stuck runner."""

LOCK_TIMEOUT_S = 5.0
"""Longest wait of a statement for a lock: later sessions, including readers, queue behind it for as long."""


@dataclass(frozen=True)
class Settings:
    """Times in seconds; 0 means no limit."""

    url: str
    path: Path
    schema: str | None = None
    table: str = "schema_migrations"
    wait_s: float = WAIT_S
    lock_timeout_s: float = LOCK_TIMEOUT_S
    statement_timeout_s: float = 0.0
    retries: int = 3
    multi_statement: bool = False
    compatible: bool = False
    without_backup: bool = False
    evidence: Path = BACKUP
    pg_dump: Path | None = None
    """None for the newest installed one."""


def seconds(text: str) -> float:
    """Read `5`, `5s`, `500ms`, `2min` or `1h`. Raises UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(|ms|s|min|m|h)", text.strip())
    if match is None:
        raise UsageError("invalid duration", seen=text, allowed="5, 5s, 500ms, 2min, 1h")
    return float(match[1]) * SECONDS[match[2]]


def from_url(url: str, settings: Settings) -> Settings:
    """Extract golang-migrate's options and time-outs from a URL, and return settings with a libpq URL.

    Raises UsageError.
    """
    found = urls.read(url)
    settings = replace(settings, url=found.url)
    if "lock_timeout" in found.server:
        settings = replace(settings, lock_timeout_s=urls.seconds("lock_timeout", found.server["lock_timeout"]))
    if "statement_timeout" in found.server:
        limit = urls.seconds("statement_timeout", found.server["statement_timeout"])
        settings = replace(settings, statement_timeout_s=limit)
    unknown = set(found.own) - {*_READERS, "x-migrations-table-quoted", "x-multi-statement-max-size"}
    if unknown:
        allowed = ", ".join(sorted({*_READERS, "x-migrations-table-quoted"}))
        raise UsageError("unknown option in the database URL", seen=", ".join(sorted(unknown)), allowed=allowed)
    quoted = _boolean(found.own.get("x-migrations-table-quoted", ""), "x-migrations-table-quoted")
    for name, reader in _READERS.items():
        if found.own.get(name):
            settings = reader(settings, found.own[name], quoted)
    return settings


def _table(settings: Settings, value: str, quoted: bool) -> Settings:
    if not quoted:
        return replace(settings, table=value)
    names = re.findall(r'"(.*?)"', value)
    if not (value.startswith('"') and value.endswith('"') and 1 <= len(names) <= 2):
        allowed = '"schema"."table" or "table" with x-migrations-table-quoted'
        raise UsageError("x-migrations-table is not quoted", seen=value, allowed=allowed)
    return replace(settings, table=names[-1], schema=names[0] if len(names) == 2 else settings.schema)


def _statement_timeout(settings: Settings, value: str, _quoted: bool) -> Settings:
    if not value.isdecimal():
        raise UsageError("x-statement-timeout is not an integer", seen=value, allowed="milliseconds")
    return replace(settings, statement_timeout_s=int(value) / 1000)


def _multi_statement(settings: Settings, value: str, _quoted: bool) -> Settings:
    return replace(settings, multi_statement=_boolean(value, "x-multi-statement"))


_READERS = {
    "x-migrations-table": _table,
    "x-statement-timeout": _statement_timeout,
    "x-multi-statement": _multi_statement,
}


def _boolean(value: str, name: str) -> bool:
    if value.lower() not in ("", "1", "t", "true", "0", "f", "false"):
        raise UsageError(f"{name} is not a boolean", seen=value, allowed="true, false")
    return value.lower() in ("1", "t", "true")
