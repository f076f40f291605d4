"""pgaudit, where the plan has it: loaded, of the server's major, and with the plan's settings. Read-only.

Session entries are written by the preloaded library; those of DDL name their objects only where the extension's event
triggers exist. Sources: pgaudit's README (settings, versions).
"""

from __future__ import annotations

from collections.abc import Iterator

from provision.checks.finding import Severity, psql
from provision.checks.registry import Row, Scope, check
from provision.database import Connection, identifier
from provision.plan.schema import Plan

EXTENSION = "pgaudit"
VERSIONS = {14: "1.6", 15: "1.7"}
"""The series of pgaudit for these majors; from 16 on it has the major's number."""
LIBRARIES = "SELECT setting FROM pg_settings WHERE name = 'shared_preload_libraries'"
SETTINGS = "SELECT name, setting FROM pg_settings WHERE name LIKE 'pgaudit.%'"
STORED = """
SELECT coalesce(d.datname::text, ''), coalesce(r.rolname::text, ''), e.entry
FROM pg_db_role_setting AS s CROSS JOIN unnest(s.setconfig) AS e (entry)
LEFT JOIN pg_database AS d ON d.oid = s.setdatabase LEFT JOIN pg_roles AS r ON r.oid = s.setrole
WHERE e.entry LIKE 'pgaudit.%' ORDER BY 1, 2, 3
"""
DISABLED = "SELECT evtname::text FROM pg_event_trigger WHERE evtname LIKE 'pgaudit_%' AND evtenabled = 'D' ORDER BY 1"


@check(
    EXTENSION,
    scope=Scope.SERVER,
    area="logs",
    severity=Severity.CRITICAL,
    expected="pgaudit loaded, of the server's major, with the plan's settings",
    why="statements leave no audit entry",
    tags="packages,postgresql,database",
    extra="-e postgresql_restart_allowed=true",
)
def audited(plan: Plan, session: Connection) -> Iterator[Row]:
    """Compare the running server with the plan; nothing where `database_extensions` lacks pgaudit."""
    if EXTENSION not in plan.access.extensions:
        return
    loaded = str(session.execute(LIBRARIES).fetchall()[0][0]).replace(" ", "").split(",")
    if EXTENSION not in loaded:
        yield f"the server does not load it: shared_preload_libraries = {','.join(loaded)}"
        return
    running = {str(name): str(value) for name, value in session.execute(SETTINGS).fetchall()}
    planned = {each.name: each.text for each in plan.server.settings if each.name.startswith(f"{EXTENSION}.")}
    wrong = [f"{name} = {running.get(name)}, planned {text}" for name, text in planned.items()
             if running.get(name) != text]  # fmt: skip
    if wrong:
        yield "; ".join(wrong)
    yield from _in_database(plan, session)
    yield from _stored(plan, session)


def _in_database(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report a missing or unfit extension and event triggers that are off, in the session's database."""
    database, expected = session.info.dbname, VERSIONS.get(plan.server.major, str(plan.server.major))
    rows = session.execute("SELECT extversion::text FROM pg_extension WHERE extname = %s", (EXTENSION,)).fetchall()
    if not rows:
        yield f"database {database} lacks the extension: log entries of DDL do not name the objects"
    elif not f"{rows[0][0]}.".startswith(f"{expected}."):
        update = psql(database, "ALTER EXTENSION pgaudit UPDATE")
        yield (
            f"version {rows[0][0]} in database {database}, expected {expected} for PostgreSQL {plan.server.major}",
            update,
        )
    disabled = [str(row[0]) for row in session.execute(DISABLED).fetchall()]
    if disabled:
        enable = [f"ALTER EVENT TRIGGER {identifier(name)} ENABLE" for name in disabled]
        yield f"event triggers are disabled: {', '.join(disabled)}", psql(database, *enable)


def _stored(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report settings that override the plan's for a database or a role, unless the plan has them for that role."""
    own = {(role.name, f"{name}={value}") for role in plan.access.roles for name, value in role.settings.items()}
    for database, role, entry in session.execute(STORED).fetchall():
        if (str(role), str(entry)) in own and not database:
            continue
        name, place = str(entry).partition("=")[0], f"DATABASE {identifier(str(database))}"
        target = f"ROLE {identifier(str(role)) if role else 'ALL'}" + (f" IN {place}" if database else "")
        target = target if role or not database else place
        yield (
            f"{target} sets {entry}",
            psql(session.info.dbname, f"ALTER {target} RESET {'.'.join(map(identifier, name.split('.')))}"),
        )
