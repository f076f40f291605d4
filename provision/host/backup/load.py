"""Restore a dump into a new database, compare row counts, then swap it with the old one.

Does IO as postgres. Nothing of a dump runs with a superuser's rights (see `loader`). The old database stays in use
until the dump is verified and every row is restored; it is then renamed, never dropped (see `exchange`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import sql

from provision import system
from provision.database import Connection, connect_pinned, identifier
from provision.errors import DriftError, HostError, ProvisionError, UsageError
from provision.host import lookup, ownership, scratch
from provision.host.access import Access
from provision.host.backup import dump, exchange, loader, show, state, tool
from provision.host.backup.tool import BackupError
from provision.host.scratch import Scratch
from provision.host.tenants import catalog, converge
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
    if plan.fleet and not into:
        raise UsageError(
            "a dump cannot replace the database of a fleet: the tenants of all groups would be rows of this one server",
            where=plan.name, allowed=f"{extra_vars(restore_into='NEW_NAME')}, or a restore of the fleet to a point",
            run="docs/fleet.md",
        )  # fmt: skip
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
    if not into and not confirm:
        raise DriftError(
            f"the restore of {folder.name} would replace database {database}, and keep the old one under another name; "
            "nothing was changed",
            run=f"{shlex.join(['provision', 'restore', 'dump', '--name', folder.name, '--confirm', database])}; or "
            f"restore.yml with {extra_vars(restore_confirm=database)}, or with -e restore_into=NEW_NAME",
        )
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
        _ready(session, into)
        loader.refuse(plan, session, facts["extensions"])
        _room(plan, int(facts.get("database_bytes", 0)))
        original = state.read(session, database) or facts.get("state")
        made = create(restore.create, plan, fresh, plan.access.owner, original)
        narrate(f"restoring into {fresh}")
        row = session.execute("SHOW maintenance_work_mem").fetchone()
        owner = loader.content_owner(plan, session, original["owner"] if original else plan.access.owner)
        work = loader.Loader(plan, session, fresh, fresh)
        exists = work.begin(facts)
        work.load(folder, folder.parent, exists, jobs=plan.backup.processes, memory=str(row[0]) if row else "64MB")
        work.analyze()
        narrate("comparing row counts")
        compare(work.admin, facts)
        work.finish(folder, folder.parent, owner)
        _complete(plan, session, work, owner)
        theirs = _tenants(plan, session, work, target)
        if original:
            apply(session, fresh, original)
        narrate(f"renaming {fresh} to {target}")
        kept = restore.swap(made, target, replace=not into)
    return {
        "when": system.stamp(begun), "dump": folder.name, "taken": facts["taken"], "database": into or database,
        "rows": sum(facts["rows"].values()), "tables": len(facts["rows"]), "kept": kept,
        "seconds": round(time.time() - begun, 1),
        "next": [
            *([f"DROP DATABASE {identifier(kept)} when it is no longer needed"] if kept else []),
            *work.left_out, *loader.others(facts, owner, known=theirs),
        ],
    }  # fmt: skip


def _named(into: str) -> str:
    """Return the name of a new database. Raises UsageError for one that cannot be used."""
    if why := names.problem(into):
        raise UsageError("invalid name for the new database", seen=repr(into)[:80], allowed=why)
    return into


def _ready(session: Connection, into: str) -> None:
    if into and scratch.find(session, into):
        raise UsageError("the target database already exists", seen=into, allowed="a name that is not in use")


def _complete(plan: Plan, session: Connection, work: loader.Loader, owner: str) -> None:
    """Do what only the superuser can: restrict large objects, and create the lookup function if the dump had it."""
    poolers = [role.name for role in plan.access.roles if role.kind == "pooler" and role.state == "present"]
    rows = session.execute("SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s)", (poolers,)).fetchall()
    with connect_pinned(work.admin, application="provision restore") as inside:
        access = Access(inside)
        access.large_objects(owner)
        if work.contents.has_lookup:
            lookup.align(access, [str(row[0]) for row in rows])


def _tenants(plan: Plan, session: Connection, work: loader.Loader, database: str) -> list[str]:
    """Give tenants of the database their schemas again, which the load gave to the database's owner. Return them."""
    found = catalog.marked(Access(session).ask, database)
    if not found:
        return []
    with connect_pinned(work.admin, application="provision restore") as inside:
        access = Access(inside)
        rows = access.ask("SELECT nspname::text FROM pg_namespace WHERE nspname = ANY(%s) ORDER BY 1", found)
        there = [str(name) for (name,) in rows]
        for name in there:
            ownership.give(inside, name)
        converge.schemas(access, converge.present(access, there))
        converge.statistics(access, [each.name for each in plan.access.roles if each.state == "present"])
    return there


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
