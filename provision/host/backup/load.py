"""Restore a dump into a new database, compare row counts, then swap it with the old one.

Does IO as postgres. The old database stays in use until the dump is verified and every row is restored; it is then
renamed, never dropped (see `exchange`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from provision import system
from provision.database import Connection, connect_pinned, identifier
from provision.errors import HostError, ProvisionError, UsageError
from provision.host import scratch
from provision.host.backup import dump, exchange, show, state, tool
from provision.host.backup.tool import BackupError
from provision.host.scratch import Scratch
from provision.plan import names
from provision.plan.schema import Plan
from provision.quoting import extra_vars


def load(
    plan: Plan, name: str, into: str, confirm: str, narrate: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Restore the dump `name` ('' is the newest) into a new database `into`, or replace the dumped database ('').

    Raises UsageError, HostError, BackupError; the database is then unchanged.
    """
    begun = time.time()
    folder = dump.pick(plan, name)
    narrate(f"verifying {folder.name}")
    facts = dump.check(folder)
    database = facts["database"]
    if int(facts["major"]) > plan.server.major:
        raise HostError(
            "this dump is from a newer major of PostgreSQL",
            seen=f"{facts['major']}; this host has {plan.server.major}",
            allowed=f"a host with {facts['major']} or newer",
        )  # fmt: skip
    if not into and confirm != database:
        raise UsageError(
            f"this replaces database {database}; the old one is renamed and kept",
            seen=repr(confirm), allowed=f"{extra_vars(restore_confirm=database)}, or -e restore_into=NEW_NAME",
        )  # fmt: skip
    target = _named(into) if into else database
    fresh = names.scratch(target, "restoring")
    with (
        connect_pinned(plan.server.url("postgres"), application="provision restore") as session,
        exchange.begun(session, target) as restore,
    ):
        _ready(plan, session, into, facts["extensions"])
        _room(plan, int(facts.get("database_bytes", 0)))
        original = state.read(session, database) or facts.get("state")
        made = create(restore.create, plan, fresh, plan.access.owner, original)
        narrate(f"restoring into {fresh}")
        row = session.execute("SHOW maintenance_work_mem").fetchone()
        url = plan.server.url(fresh)
        fill(plan, folder, url, jobs=plan.backup.processes, memory=str(row[0]) if row else "64MB")
        tool.run(f"{plan.server.programs}/vacuumdb", "--analyze-only", "--quiet", "--dbname", url)
        narrate("comparing row counts")
        compare(url, facts)
        if original:
            apply(session, fresh, original)
        narrate(f"renaming {fresh} to {target}")
        kept = restore.swap(made, target, replace=not into)
    return {
        "when": system.stamp(begun), "dump": folder.name, "taken": facts["taken"], "database": into or database,
        "rows": sum(facts["rows"].values()), "tables": len(facts["rows"]), "kept": kept,
        "seconds": round(time.time() - begun, 1),
        "next": [f"DROP DATABASE {identifier(kept)} when it is no longer needed"] if kept else [],
    }  # fmt: skip


def _named(into: str) -> str:
    """Return the name of a new database. Raises UsageError for one that cannot be used."""
    if why := names.problem(into):
        raise UsageError("invalid name for the new database", seen=repr(into)[:80], allowed=why)
    return into


def _ready(plan: Plan, session: Connection, into: str, extensions: dict[str, str]) -> None:
    if into and scratch.find(session, into):
        raise UsageError("the target database already exists", seen=into, allowed="a name that is not in use")
    known = {str(row[0]) for row in session.execute("SELECT name FROM pg_available_extensions")}
    lacking = sorted(set(extensions) - known)
    if lacking:
        raise HostError(
            f"the dump needs extension {lacking[0]}, which is not installed",
            run=plan.site("pgvector"),
        )


def create(
    make: Callable[[str, sql.Composable], Scratch],
    plan: Plan,
    fresh: str,
    owner: str,
    original: Mapping[str, Any] | None,
) -> Scratch:
    """Create a database like the original, or with the server's defaults, by `make`. Raises BackupError."""
    like = state.creation(original, plan.server.major) if original else sql.SQL("")
    try:
        return make(fresh, sql.SQL("OWNER {} TEMPLATE template0 {}").format(sql.Identifier(owner), like))
    except psycopg.Error as error:
        raise BackupError(
            "cannot create the database with the original's properties", where=fresh, seen=str(error).strip(),
            allowed="a server with the original's locale, collation provider, tablespace and owner",
        ) from None  # fmt: skip


def apply(session: Connection, fresh: str, original: Mapping[str, Any]) -> None:
    """Give the new database the original's owner, settings and privileges. Raises BackupError."""
    try:
        state.apply(session, fresh, original)
    except (psycopg.Error, ValueError, ProvisionError) as error:
        seen = error.seen if isinstance(error, ProvisionError) else str(error).strip()
        raise BackupError(
            "cannot apply the original's settings and privileges to the restored database; the original is unchanged",
            where=fresh, seen=seen,
            run="SELECT setconfig FROM pg_db_role_setting; reset what the server refuses, then retry",
        ) from None  # fmt: skip


def fill(plan: Plan, folder: Path, url: str, *options: str, jobs: int = 1, memory: str = "64MB") -> None:
    """Restore a dump into an empty database. `memory` is maintenance_work_mem. Raises BackupError.

    Rows are loaded in the order of the dump, as in its restore test: with several jobs a CHECK that reads another table
    would fail in some runs. Only indexes and constraints are created by several jobs.
    """
    for section in (("--section=pre-data", "--section=data"), ("--section=post-data", f"--jobs={jobs}")):
        done = tool.run(
            f"{plan.server.programs}/pg_restore", "--exit-on-error", *section, *options,
            "--dbname", url, folder / "data",
            environment={"PGOPTIONS": f"-c maintenance_work_mem={memory}"}, quiet=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise BackupError(
                "the dump could not be restored; the database is unchanged",
                where=folder.name, seen=tool.reason(done), run=cure(done.stderr, folder),
            )  # fmt: skip


_MISSING_ROLE = re.compile(r'role ".+" does not exist')
_MISSING = re.compile(r"(?:relation|function|type|operator|schema|table|collation|text search \w+) .*does not exist")
_CHECK = re.compile(r'new row for relation "(.+)" violates check constraint "(.+)"')
_CONTEXT = re.compile(r'function "?([\w.$]+)"?')


def cure(said: str, folder: Path) -> str:
    """Return the next step after a message of pg_restore, "" if none is known. Pure.

    pg_restore works with an empty search_path, so a function that names a table without its schema fails in a CHECK, a
    generated column, an index expression or a materialized view.
    """
    if _MISSING_ROLE.search(said):
        return f"runuser -u postgres -- psql -f {folder}/roles.sql (creates the roles without passwords), then retry"
    if check := _CHECK.search(said):
        return (
            f"{check[2]} reads other rows, which are loaded later: ALTER TABLE {check[1]} DROP CONSTRAINT {check[2]}, "
            f"ADD CONSTRAINT {check[2]} CHECK (...) NOT VALID (pg_restore then adds it after the rows, and new "
            "rows are checked), or use a foreign key or a trigger; then take a new dump "
            "(docs/a-dump-cannot-be-restored.md)"
        )
    if not _MISSING.search(said):
        return ""
    named = [name for line in said.splitlines() if "CONTEXT:" in line for name in _CONTEXT.findall(line)]
    function = named[0] if named else "NAME"
    return (
        f"a function names an object without its schema: ALTER FUNCTION {function} SET search_path = public (in the "
        "original database), then take a new dump; if only the dump is left: docs/a-dump-cannot-be-restored.md"
    )


def compare(url: str, facts: dict[str, Any]) -> None:
    """Compare the row counts of a restored database with the manifest. Raises BackupError."""
    with connect_pinned(url, application="provision restore") as restored:
        seen = dump.contents(restored)
    wrong = [
        f"{name}: {facts['rows'].get(name)} rows dumped, {seen['rows'].get(name)} restored"
        for name in sorted(set(facts["rows"]) | set(seen["rows"]))
        if facts["rows"].get(name) != seen["rows"].get(name)
    ]
    if wrong:
        raise BackupError("not every row was restored; the database is unchanged", seen="; ".join(wrong[:5]))


def _room(plan: Plan, size: int) -> None:
    """Raise HostError if a second copy of the database might fill the disk."""
    need, free = size + tool.reserve(plan.server.data), tool.free_bytes(plan.server.data)
    if free < need:
        raise HostError(
            "too little disk space to restore the dump",
            where=str(plan.server.data), seen=f"{show.size(free)} free",
            allowed=f"{show.size(need)} (the database plus a reserve)", run="free space",
        )  # fmt: skip
