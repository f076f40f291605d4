"""Restore a dump into a new database, compare row counts, then swap it with the old one.

Does IO as postgres. The old database stays in use until the dump is verified and every row is restored; it is then
renamed, never dropped (see `exchange`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg import sql

from provision import system
from provision.database import Connection, connect_pinned, identifier
from provision.errors import HostError, UsageError
from provision.host import scratch
from provision.host.backup import dump, exchange, show, tool
from provision.host.backup.tool import BackupError
from provision.plan import names
from provision.plan.schema import Plan
from provision.quoting import extra_vars

_SETTINGS = """
SELECT format('ALTER DATABASE %%I SET %%s = %%L', %s::text, split_part(entry, '=', 1), substr(entry, strpos(entry,
'=') + 1))
FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) entry
WHERE d.datname = %s AND s.setrole = 0
UNION ALL
SELECT format('ALTER ROLE %%I IN DATABASE %%I SET %%s = %%L', pg_get_userbyid(s.setrole), %s::text,
  split_part(entry, '=', 1), substr(entry, strpos(entry, '=') + 1))
FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) entry
WHERE d.datname = %s AND s.setrole <> 0
UNION ALL
SELECT format('REVOKE ALL ON DATABASE %%I FROM PUBLIC', %s::text) FROM pg_database WHERE datname = %s AND datacl IS
NOT NULL
UNION ALL
SELECT format('GRANT %%s ON DATABASE %%I TO %%s', privilege_type, %s::text,
  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
FROM pg_database, aclexplode(datacl) WHERE datname = %s
"""


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
        made = restore.create(fresh, _options(plan))
        _fill(plan, folder, fresh, session, narrate)
        narrate("comparing row counts")
        _compare(plan, fresh, facts)
        for (statement,) in session.execute(_SETTINGS, (fresh, database) * 4).fetchall():
            session.execute(str(statement))  # quoted by the server
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
        raise UsageError("not a name for a database here", seen=repr(into)[:80], allowed=why)
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


def _options(plan: Plan) -> sql.Composed:
    return sql.SQL("OWNER {} TEMPLATE template0").format(sql.Identifier(plan.access.owner))


def _fill(plan: Plan, folder: Path, fresh: str, session: Connection, narrate: Callable[[str], None]) -> None:
    narrate(f"restoring into {fresh}")
    row = session.execute("SHOW maintenance_work_mem").fetchone()
    done = tool.run(
        f"{plan.server.programs}/pg_restore", "--exit-on-error", f"--jobs={plan.backup.processes}",
        "--dbname", plan.server.url(fresh), folder / "data",
        environment={"PGOPTIONS": f"-c maintenance_work_mem={row[0] if row else '256MB'}"}, quiet=True,
    )  # fmt: skip
    if done.returncode != 0:
        seen = tool.reason(done)
        raise BackupError(
            "the dump could not be restored; the database is unchanged", where=folder.name, seen=seen,
            run=f"runuser -u postgres -- psql -f {folder}/roles.sql (creates the roles without passwords), then retry"
            if "role" in seen and "does not exist" in seen else "",
        )  # fmt: skip
    tool.run(f"{plan.server.programs}/vacuumdb", "--analyze-only", "--quiet", "--dbname", plan.server.url(fresh))


def _compare(plan: Plan, fresh: str, facts: dict[str, Any]) -> None:
    with connect_pinned(plan.server.url(fresh), application="provision restore") as restored:
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
