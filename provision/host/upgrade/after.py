"""What the new server needs after pg_upgrade: statistics, newer extensions, a comparison of its contents. Does IO.

pg_upgrade moves statistics from PostgreSQL 18 on, but extended ones; before, and after logical replication to any
major, a table has none until it is analysed, and plans are bad.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql

from provision.database import Connection, ask
from provision.host.upgrade import check, transfer
from provision.host.upgrade.sessions import databases, session_of
from provision.host.upgrade.side import Side
from provision.plan.schema import Plan

MOVED_SINCE = 18
OUTDATED = """
SELECT e.extname::text, a.default_version FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname
WHERE a.default_version <> e.extversion ORDER BY 1
"""
CONTENTS = """
SELECT format('%s %s', c.relkind, c.oid::regclass) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'i', 'I', 'S', 'v')
  AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  AND (c.relkind NOT IN ('i', 'I') OR EXISTS (SELECT FROM pg_index x WHERE x.indexrelid = c.oid AND x.indisvalid))
"""
ROLES = "SELECT rolname::text FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%'"


def first_statistics(plan: Plan) -> None:
    """Analyse every table coarsely, so that the first plans use indexes: one statistics target, a few seconds."""
    _analyse(plan, default_statistics_target="1")


def statistics(plan: Plan) -> None:
    """Analyse every table again in two steps, while clients work."""
    _analyse(plan, default_statistics_target="10")
    _analyse(plan)


def moved(plan: Plan) -> bool:
    """Whether pg_upgrade has moved the statistics."""
    return plan.server.major >= MOVED_SINCE


def statistics_after_pg_upgrade(plan: Plan) -> None:
    """Analyse every table again, or where pg_upgrade moves statistics those tables of which it has left some out."""
    if moved(plan):
        _analyse(plan, "--missing-stats-only")
    else:
        statistics(plan)


def _analyse(plan: Plan, *more: str, **settings: str) -> None:
    words = ["--all", "--analyze-only", f"--jobs={max(1, plan.host.cpus)}", "--username=postgres", *more]
    words += [f"--host={plan.server.socket_directory}", f"--port={plan.server.port}"]
    transfer.program(Side.of(plan), "vacuumdb", *words, **settings)


def update_extensions(plan: Plan) -> dict[str, list[str]]:
    """Update each extension to its library's version, in every database. Raises DatabaseError."""
    done: dict[str, list[str]] = {}
    for name in databases(plan):
        with session_of(plan, name) as session:
            for extension, version in ask(session, OUTDATED):
                _update(session, str(extension))
                done.setdefault(name, []).append(f"{extension} {version}")
    return done


def _update(session: Connection, name: str) -> None:
    identifier = sql.Identifier(name)
    if name not in check.RECREATED:
        session.execute(sql.SQL("ALTER EXTENSION {} UPDATE").format(identifier))
        return
    with session.transaction():
        session.execute(sql.SQL("DROP EXTENSION {}").format(identifier))
        session.execute(sql.SQL("CREATE EXTENSION {}").format(identifier))


def identifier(plan: Plan) -> int:
    """Return the cluster's system identifier, by which pgBackRest knows it."""
    with session_of(plan) as session:
        return int(str(ask(session, "SELECT system_identifier FROM pg_control_system()")[0][0]))


def contents(plan: Plan) -> dict[str, Any]:
    """Name roles, and by database its tables, sequences, views and valid indexes."""
    found: dict[str, Any] = {}
    for name in databases(plan):
        with session_of(plan, name) as session:
            found[name] = sorted(str(row[0]) for row in ask(session, CONTENTS))
    with session_of(plan) as session:
        found[""] = sorted(f"role {row[0]}" for row in ask(session, ROLES))
    return found


def missing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what was there before and is not now."""
    found = []
    for name, things in before.items():
        lost = sorted(set(things) - set(now.get(name, ())))
        place = f"database {name}: " if name else ""
        found += [f"{place}missing {each}" for each in lost[:5]]
        found += [f"{place}{len(lost) - 5} more are missing"] if len(lost) > 5 else []
    return found
