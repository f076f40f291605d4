"""Restore a dump: checked whole first, into a new database, counted, and only then put in the old one's place.

Does IO as postgres. The target is not touched before the dump has proved to be whole and the new database to hold
every row; the old database is renamed, never dropped.
"""

from __future__ import annotations

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
    """Restore a dump (`''`: the newest) into a new database `into`, or in place of the dumped one for `''`.

    Raises UsageError, HostError, BackupError; the target is then as it was.
    """
    begun = time.time()
    folder = dump.pick(plan, name)
    narrate(f"checking every file of {folder.name}")
    facts = dump.check(folder)
    database = facts["database"]
    if int(facts["major"]) > plan.server.major:
        raise HostError(
            "this dump is of a newer major of PostgreSQL",
            seen=f"{facts['major']}, this host has {plan.server.major}",
            allowed=f"a host with {facts['major']} or newer",
        )  # fmt: skip
    if not into and confirm != database:
        raise UsageError(
            f"this puts the dump in the place of database {database}, which is kept under another name",
            seen=repr(confirm), allowed=f"-e restore_confirm={database}, or -e restore_into=NEW_NAME",
        )  # fmt: skip
    fresh = dump.safe_name(into) if into else f"{database}_restoring"
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
        "next": [f'DROP DATABASE "{kept}" once you are sure'] if kept else [],
    }  # fmt: skip


def _ready(plan: Plan, session: Connection, fresh: str, named: bool, extensions: dict[str, str]) -> None:
    there = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", (fresh,)).fetchone()
    if there and named:
        raise UsageError("the target database exists already", seen=fresh, allowed="the name of one that does not")
    if there:  # of a restore that was killed: nobody has ever used it
        session.execute(f'DROP DATABASE "{fresh}" WITH (FORCE)')
    known = {str(row[0]) for row in session.execute("SELECT name FROM pg_available_extensions")}
    lacking = sorted(set(extensions) - known)
    if lacking:
        raise HostError(
            f"extension {lacking[0]} is not on this host, and the dump needs it",
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
            "the dump could not be restored; the target is as it was", where=folder.name, seen=seen,
            run=f"runuser -u postgres -- psql -f {folder}/roles.sql makes the roles, without passwords; then again"
            if "role" in seen and "does not exist" in seen else "",
        )  # fmt: skip
    tool.run(f"{plan.server.programs}/vacuumdb", "--analyze-only", "--quiet", "--dbname", plan.server.url(fresh))


def _compare(plan: Plan, fresh: str, facts: dict[str, Any]) -> None:
    with connect_pinned(plan.server.url(fresh), application="provision restore") as restored:
        seen = dump.contents(restored)
    wrong = [
        f"{name}: {facts['rows'].get(name)} rows were dumped, {seen['rows'].get(name)} are there"
        for name in sorted(set(facts["rows"]) | set(seen["rows"]))
        if facts["rows"].get(name) != seen["rows"].get(name)
    ]
    if wrong:
        raise BackupError("not every row came back; the target is as it was", seen="; ".join(wrong[:5]))


def _room(plan: Plan, size: int) -> None:
    """Raise HostError where a second copy of the database would fill the server's disk."""
    need, free = size + tool.reserve(plan.server.data), tool.free_bytes(plan.server.data)
    if free < need:
        raise HostError(
            "there is too little space for the dump beside what is there",
            where=str(plan.server.data), seen=f"{show.size(free)} free",
            allowed=f"{show.size(need)}: the database, and a tenth of the file system", run="make room",
        )  # fmt: skip


def _take_place(session: Connection, database: str, fresh: str) -> str:
    """Put the new database in the old one's place; give the old one's new name. Leaves both as they were on failure."""
    there = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone()
    kept = f"{database}_before_{system.compact().lower()}" if there else ""  # needs no quotes
    done = False
    try:
        if kept:  # or a pool of connections would be back before the database is renamed
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
            f"database {database} could not be put aside; it is as it was", seen=str(error).strip(),
            run="SELECT gid FROM pg_prepared_xacts: sessions are ended, but a prepared transaction holds the database",
        ) from None  # fmt: skip
    finally:
        if kept:
            session.execute(f'ALTER DATABASE "{kept if done else database}" ALLOW_CONNECTIONS true')
        if not done:
            session.execute(f'DROP DATABASE IF EXISTS "{fresh}" WITH (FORCE)')
    return kept
