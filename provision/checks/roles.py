"""Login roles judged with the plan: a role of the plan is converged by the playbook, any other by a statement.

Replaces, on a host, the findings of the queries with the same ids, which see the catalogue alone. Read-only.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from psycopg import sql

from provision.checks.finding import psql
from provision.checks.registry import Row, Scope, also
from provision.database import Connection, identifier
from provision.host.tenants import catalog
from provision.plan.schema import Plan

BY_PLAN = ("limits", "timeouts", "verifiers")
"""The checks of this module: on a host they say everything that the queries would."""
LIMIT = 10
"""Connections of a login role that no inventory has."""
TIMEOUTS = {"statement_timeout": "30s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "60s"}
"""As in profiles/prod.yml."""

_UNLIMITED = "SELECT rolname::text FROM pg_roles WHERE rolcanlogin AND NOT rolsuper AND rolconnlimit < 0 ORDER BY 1"
_TIMELESS = """
SELECT r.rolname::text, w FROM pg_roles r, unnest(%s::text[]) w WHERE r.rolname ~ '_(app|readonly)$' AND r.rolcanlogin
AND NOT EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) e
  WHERE s.setrole = r.oid AND s.setdatabase = 0 AND e LIKE w || '=%%' AND e !~ '=0+ *[a-z]*$') ORDER BY 1, 2
"""
_OTHER_VERIFIERS = """
SELECT rolname::text FROM pg_authid
WHERE rolpassword IS NOT NULL AND rolpassword NOT LIKE 'SCRAM-SHA-256$%' ORDER BY 1
"""


@also("limits", Scope.SERVER)
def limits(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report login roles without a limit. The next run would reset one that only the server has."""
    found = [str(row[0]) for row in session.execute(_UNLIMITED).fetchall()]
    declared = {each.name: each.connection_limit for each in plan.access.roles}
    for role in found:
        fix = psql(plan.access.database, f"ALTER ROLE {identifier(role)} CONNECTION LIMIT {LIMIT}")
        if role in declared:
            fix = plan.site("database")
            if declared[role] < 0:
                fix += f"  # first set its connection_limit, such as {LIMIT}, in database_extra_roles"
        yield f"role {role} has no connection limit", fix


@also("timeouts", Scope.SERVER)
def timeouts(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report application roles without a timeout that are not in the plan; access-drift compares the others."""
    rows = session.execute(_TIMELESS, (list(TIMEOUTS),)).fetchall()
    for role in _strangers(plan, session, list(dict.fromkeys(str(row[0]) for row in rows))):
        missing = [str(name) for each, name in rows if each == role]
        statements = [
            sql.SQL("ALTER ROLE {} SET {} = {}")
            .format(sql.Identifier(role), sql.Identifier(name), sql.Literal(TIMEOUTS[name]))
            .as_string(session)
            for name in missing
        ]
        yield f"role {role} has no {', '.join(missing)}", psql(plan.access.database, *statements)


@also("verifiers", Scope.SERVER)
def verifiers(plan: Plan, session: Connection) -> Iterator[Row]:
    """Report passwords that are not SCRAM; psql asks for the new one of a role that is not in the plan."""
    ours = {each.name for each in plan.access.roles if each.has_password}
    for (role,) in session.execute(_OTHER_VERIFIERS.encode()).fetchall():
        ask = ["runuser", "-u", "postgres", "--", "psql", "-d", "postgres", "-c", f"\\password {identifier(str(role))}"]
        fix = plan.site("database") if role in ours else f"{shlex.join(ask)}  # asks for the new password"
        yield f"role {role} has a password that is not SCRAM", fix


def _strangers(plan: Plan, session: Connection, found: list[str]) -> list[str]:
    """Return the roles that neither the plan nor its tenants have, which access-drift does not compare."""

    def ask(query: str, *given: object) -> list[tuple[object, ...]]:
        return session.execute(query.encode(), given).fetchall()

    known = {each.name for each in plan.access.roles}
    known |= set(catalog.roles(ask, catalog.marked(ask, plan.access.database)))
    return [name for name in found if name not in known]
