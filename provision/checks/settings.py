"""Settings of the server that weaken it, and the command that removes a value from the place where it was set.

Read-only. A value of ALTER SYSTEM is reset; one of another file than ours is commented out; for ours, the playbook
runs. Needs pg_read_all_settings to know the place; without it, the playbook is the fix.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from typing import Unpack

from provision.checks.finding import Severity, psql
from provision.checks.registry import About, Row, Scope, check
from provision.database import Connection, identifier

OURS = "/conf.d/50-provision.conf"
ALTER_SYSTEM = "/postgresql.auto.conf"
RELOAD = "SELECT pg_reload_conf()"
DATABASE = "postgres"
RESTART = "-e postgresql_restart_allowed=true"


def remove(name: str, file: str, line: int) -> str:
    """Return the command that removes a value and reloads; "" where our own file or a default has it. Pure.

    It runs in the database postgres, which only superusers change: in another one, its owner can substitute the
    function.
    """
    if not file or file.endswith(OURS):
        return ""
    if file.endswith(ALTER_SYSTEM) and name:
        return psql(DATABASE, f"ALTER SYSTEM RESET {identifier(name)}", RELOAD)
    # As postgres: root would follow a link that replaced the file in the meantime.
    edit = ["runuser", "-u", "postgres", "--", "sed", "-i", f"{line}s/^/# /", file]
    return f"{shlex.join(edit)} && {psql(DATABASE, RELOAD)}"


def _look(wrong: str, session: Connection) -> Iterator[Row]:
    """Yield the settings that match a condition, those with the same fix in one row."""
    rows = session.execute(
        f"SELECT name, setting, coalesce(sourcefile, ''), coalesce(sourceline, 0) FROM pg_settings WHERE {wrong}"
        " ORDER BY 1".encode()
    ).fetchall()
    fixes: dict[str, list[str]] = {}
    for name, value, file, line in rows:
        fix = remove(str(name), str(file), int(str(line)))
        fixes.setdefault(fix, []).append(f"{name} = {value}")
    for fix, texts in fixes.items():
        yield "; ".join(texts), fix


def setting(id: str, wrong: str, **about: Unpack[About]) -> None:  # noqa: A002
    """Register a check of pg_settings: every row that matches the condition `wrong` is a deviation."""
    check(id, Scope.DATABASE, **about)(functools.partial(_look, wrong))


setting(
    "durability",
    "(name IN ('fsync', 'full_page_writes') AND setting = 'off')"
    " OR (name IN ('ignore_checksum_failure', 'zero_damaged_pages', 'ignore_system_indexes') AND setting = 'on')",
    area="storage",
    severity=Severity.CRITICAL,
    expected="fsync and full_page_writes on, errors for damaged pages",
    why="after a power failure the cluster may not start, and damage spreads undetected",
    tags="postgresql",
)

setting(
    "scram",
    "name = 'password_encryption' AND setting <> 'scram-sha-256'",
    area="access",
    expected="password_encryption scram-sha-256",
    why="md5 verifiers can be replayed",
    tags="postgresql",
)

setting(
    "listen",
    "name = 'listen_addresses' AND setting ~ '(^|,)\\s*(\\*|0\\.0\\.0\\.0|::)\\s*(,|$)'",
    area="access",
    expected="only the addresses that applications use",
    why="the server also listens on every interface added later",
    fix="{site}  # ends all sessions; if the inventory has this value, set postgresql_listen_addresses first",
    tags="postgresql",
    extra=RESTART,
    development=True,
)

setting(
    "tls",
    "name = 'ssl' AND setting = 'off'",
    area="access",
    expected="ssl on",
    why="traffic is unencrypted and the server is not authenticated",
    tags="tls,postgresql",
    development=True,
)

setting(
    "tls-version",
    "name = 'ssl_min_protocol_version' AND setting NOT IN ('TLSv1.2', 'TLSv1.3')",
    area="access",
    expected="TLSv1.2 or newer",
    why="TLS 1.0 and 1.1 are deprecated as insecure (RFC 8996)",
    tags="postgresql",
)

setting(
    "logging",
    "name IN ('log_connections', 'log_disconnections', 'log_lock_waits') AND setting IN ('off', '')",
    area="logs",
    expected="connections and lock waits logged",
    why="past access and lock waits cannot be investigated",
    tags="postgresql",
)

setting(
    "log-statement",
    "name = 'log_statement' AND setting NOT IN ('ddl', 'mod')",
    area="logs",
    expected="log_statement = ddl",
    why="`none` logs no schema changes; `all` writes agents' data to the log",
    tags="postgresql",
)


@check(
    "archiving",
    Scope.DATABASE,
    area="backup",
    severity=Severity.CRITICAL,
    expected="working WAL archiving",
    why="point-in-time recovery is impossible, and WAL fills the disk",
    fix="provision backup status  # names the cause; then docs/the-disk-is-full-of-wal.md",
    tags="postgresql",
    extra=RESTART,
    development=True,
)
def archiving(session: Connection) -> Iterator[Row]:
    """Report archiving that is off, that fails, or that has not begun."""
    row = session.execute(
        "SELECT s.setting, coalesce(s.sourcefile, ''), coalesce(s.sourceline, 0), a.last_failed_time::text,"
        " a.last_failed_time > coalesce(a.last_archived_time, '-infinity'), a.last_archived_time IS NULL"
        " FROM pg_settings s, pg_stat_archiver a WHERE s.name = 'archive_mode'"
    ).fetchone()
    mode, file, line, failed, fails, none = row if row else ("on", "", 0, "", False, False)
    if mode == "off":
        yield "archive_mode = off", remove("archive_mode", str(file), int(str(line))) or "{site}"
    elif fails:
        yield f"archiving has failed since {failed}"
    elif none:
        yield "no WAL has been archived yet"


@check(
    "overridden",
    Scope.DATABASE,
    area="settings",
    expected="settings from conf.d/50-provision.conf",
    why="a later file overrides the inventory's value",
)
def overridden(session: Connection) -> Iterator[Row]:
    """Report settings of ours that a later file sets to another value; Patroni repeats some."""
    rows = session.execute(
        "SELECT f.name, f.sourceline, f.setting, o.sourcefile, o.sourceline, current_setting(f.name, true)"
        " FROM pg_file_settings f JOIN pg_settings s ON s.name = lower(f.name)"
        " JOIN pg_file_settings o ON o.name = f.name AND o.applied AND NOT f.applied AND o.setting <> f.setting"
        " WHERE f.sourcefile LIKE '%%' || %s AND NOT s.pending_restart"
        " AND o.sourcefile NOT LIKE '%%' || %s AND o.sourcefile NOT LIKE '%%' || %s ORDER BY 1",
        (OURS, OURS, ALTER_SYSTEM),
    ).fetchall()
    for name, line, expected, file, other, now in rows:
        yield (
            f"{name} is set in conf.d/50-provision.conf line {line} to {expected}, again in {file} line {other}, and "
            f"runs as {now}",
            remove(str(name), str(file), int(str(other))),
        )


@check(
    "not-read",
    Scope.DATABASE,
    area="settings",
    severity=Severity.CRITICAL,
    expected="configuration files without errors",
    why="a reload ignores the file, and a restart fails",
    tags="postgresql",
)
def not_read(session: Connection) -> Iterator[Row]:
    """Report the errors of configuration files."""
    rows = session.execute(
        "SELECT coalesce(name, ''), sourcefile, sourceline, error FROM pg_file_settings WHERE error IS NOT NULL"
        " AND error <> 'setting could not be applied' ORDER BY seqno"
    ).fetchall()
    for name, file, line, error in rows:
        known = str(name) if re.fullmatch(r"[\w.]+", str(name)) else ""
        yield f"{file} line {line}: {error}", remove(known, str(file), int(str(line)))


setting(
    "checksums",
    "name = 'data_checksums' AND setting <> 'on'",
    area="storage",
    expected="data_checksums on",
    why="pages damaged on disk are read without an error",
    fix="provision server checksums --enable  # ends all sessions and rewrites every page while the server is down",
)
