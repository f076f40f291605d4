"""Restore a dump into a new database, compare row counts, then swap it with the old one.

Does IO as postgres. The old database stays in use until the dump is verified and every row is restored; it is then
renamed, never dropped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provision import system
from provision.database import Connection, connect_pinned
from provision.errors import HostError, UsageError
from provision.host.backup import dump, show, tool
from provision.host.backup.tool import BackupError
from provision.plan.schema import Plan

LONGEST_NAME_BYTES = 63

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
            seen=repr(confirm), allowed=f"-e restore_confirm={database}, or -e restore_into=NEW_NAME",
        )  # fmt: skip
    fresh = _named(into) if into else derived(database, "_restoring")
    with connect_pinned(plan.server.url("postgres"), application="provision restore") as session:
        _ready(plan, session, fresh, bool(into), facts["extensions"])
        _room(plan, int(facts.get("database_bytes", 0)))
        _create(session, fresh, plan.access.owner)
        try:
            _fill(plan, folder, fresh, session, narrate)
            _compare(plan, fresh, facts)
            for (statement,) in session.execute(_SETTINGS, (fresh, database) * 4).fetchall():
                session.execute(str(statement))  # quoted by the server
        except BaseException:
            session.execute(f'DROP DATABASE IF EXISTS "{fresh}" WITH (FORCE)')
            raise
        kept = "" if into else _take_place(session, database, fresh)
    return {
        "when": system.stamp(begun), "dump": folder.name, "taken": facts["taken"], "database": into or database,
        "rows": sum(facts["rows"].values()), "tables": len(facts["rows"]), "kept": kept,
        "seconds": round(time.time() - begun, 1),
        "next": [f'DROP DATABASE "{kept}" when it is no longer needed'] if kept else [],
    }  # fmt: skip


def derived(database: str, suffix: str) -> str:
    """Return a name beside a database's own, within PostgreSQL's limit, and never the database's own name.

    The server cuts a longer name without an error (NAMEDATALEN, 63 bytes), and could so cut it to the live database's.
    """
    name = database + suffix
    if len(name.encode()) <= LONGEST_NAME_BYTES:
        return name
    mark = f"_{hashlib.sha256(database.encode()).hexdigest()[:8]}{suffix}"
    return database.encode()[: LONGEST_NAME_BYTES - len(mark)].decode(errors="ignore") + mark


def _named(into: str) -> str:
    name = dump.safe_name(into)
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise UsageError(
            "the target's name is too long",
            seen=f"{len(name.encode())} bytes",
            allowed=f"{LONGEST_NAME_BYTES} bytes or less",
        )
    return name


def _ready(plan: Plan, session: Connection, fresh: str, named: bool, extensions: dict[str, str]) -> None:
    there = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", (fresh,)).fetchone()
    if there and named:
        raise UsageError("the target database already exists", seen=fresh, allowed="a name that is not in use")
    if there:  # left by a killed restore, never used
        session.execute(f'DROP DATABASE "{fresh}" WITH (FORCE)')
    known = {str(row[0]) for row in session.execute("SELECT name FROM pg_available_extensions")}
    lacking = sorted(set(extensions) - known)
    if lacking:
        raise HostError(
            f"the dump needs extension {lacking[0]}, which is not installed",
            run=plan.site("pgvector"),
        )


def _create(session: Connection, fresh: str, owner: str) -> None:
    session.execute(f'CREATE DATABASE "{fresh}" OWNER "{owner}" TEMPLATE template0')


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


def _take_place(session: Connection, database: str, fresh: str) -> str:
    """Swap the databases by renaming. Return the old one's new name. On failure the old database is unchanged."""
    there = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone()
    kept = derived(database, f"_before_{system.compact().lower()}") if there else ""  # needs no quotes
    done = False
    try:
        if kept:  # a connection pool would reconnect before the rename
            session.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        with session.transaction():
            session.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (database,)
            )
            if kept:
                session.execute(f'ALTER DATABASE "{database}" RENAME TO "{kept}"')
            session.execute(f'ALTER DATABASE "{fresh}" RENAME TO "{database}"')
        done = True
    except Exception as error:
        raise BackupError(
            f"database {database} could not be renamed; it is unchanged", seen=str(error).strip(),
            run="SELECT gid FROM pg_prepared_xacts; a prepared transaction keeps the database in use",
        ) from None  # fmt: skip
    finally:
        if kept:
            session.execute(f'ALTER DATABASE "{kept if done else database}" ALLOW_CONNECTIONS true')
        if not done:
            session.execute(f'DROP DATABASE IF EXISTS "{fresh}" WITH (FORCE)')
    return kept
