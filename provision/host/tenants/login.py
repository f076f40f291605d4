"""A session as a tenant: a temporary login that can be this one tenant and nothing else. Does IO as the superuser.

Code of a tenant runs in such a session: its triggers, its CHECK constraints, functions in its indexes. SET ROLE in a
session with more rights would not confine it, because such a function can reset the role. So each use has a login role
of its own with a random password, a member of the tenant's owner alone, whose sessions begin as that owner and whose
name no other tenant's command uses again. RESET ROLE and RESET SESSION AUTHORIZATION lead back to the tenant's owner.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from provision.database import Connection, connect_pinned
from provision.errors import DatabaseError
from provision.host.access import unseen
from provision.plan import names, tenants
from provision.plan.schema import Plan
from provision.plan.secrets import new_salt, scram_verifier
from provision.quoting import conninfo

APPLICATION = "provision tenant"
CLAIM = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
CLAIM_SHARED = "SELECT pg_try_advisory_lock_shared(hashtextextended(%s, 0))"
RELEASE = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"
RELEASE_SHARED = "SELECT pg_advisory_unlock_shared(hashtextextended(%s, 0))"
VALID = "1 day"
"""Time after which a login that was left behind is refused; a session that is open continues."""
ABANDONED = "10 minutes"
"""Age at which a login without a session is dropped: its command was killed."""
SESSIONS = 4
"""Connections of a login beside the processes of a dump: a tenant's code can change its password meanwhile."""
LIMIT_S = 3600
"""Longest time that one tenant may take of a command for all of them."""
END_S, POLL_S = 5, 0.005
"""Longest wait for the sessions of a login to end, and the pause between looks."""
_MARK = "provision: temporary login of a tenant"


@dataclass(frozen=True)
class Login:
    """A temporary login: connection strings with and without its password."""

    role: str
    password: str
    place: str
    """Connection string without the password, for programs that read PGPASSWORD."""

    @property
    def url(self) -> str:
        """Connection string with the password, for this process alone."""
        return f"{self.place} {conninfo({'password': self.password})}"


def superuser(plan: Plan) -> Connection:
    """Open a superuser session in the plan's database that logs no password."""
    session = connect_pinned(plan.server.url(plan.access.database), application=APPLICATION)
    unseen(session)
    return session


@contextmanager
def claimed(session: Connection, name: str, *, alone: bool) -> Iterator[None]:
    """Hold a tenant of a fleet for a `with` block: `alone` for a move, else beside others that act as the tenant.

    The claim ends with the session. Raises DatabaseError if another command is in the way.
    """
    claim, release = (CLAIM, RELEASE) if alone else (CLAIM_SHARED, RELEASE_SHARED)
    key = (f"provision tenant {name}",)
    if session.execute(claim, key).fetchone() != (True,):
        raise DatabaseError(
            f"another command is {'working with' if alone else 'moving'} tenant {name}",
            where=f"database {session.info.dbname}",
            seen="a migration, maintenance, an export or a move" if alone else "a move to another group",
            run="repeat this command when it has ended",
        )
    try:
        yield
    finally:
        with suppress(psycopg.Error):
            session.execute(release, key)


@contextmanager
def acting(plan: Plan, session: Connection, name: str, *, limit_s: float = 0) -> Iterator[Login]:
    """Make a login for a tenant and drop it at the end. `session` is the superuser's, in the tenants' database.

    After `limit_s` seconds its sessions are ended, for a tenant's trigger may never return; 0 is no limit. Raises
    DatabaseError if the login cannot be created, or in a fleet while the tenant moves.
    """
    claim = claimed(session, name, alone=False) if plan.fleet else nullcontext()
    with claim, _acting(plan, session, name, limit_s) as found:
        yield found


@contextmanager
def _acting(plan: Plan, session: Connection, name: str, limit_s: float) -> Iterator[Login]:
    role, password = names.derived(name, f"_job_{secrets.token_hex(6)}"), secrets.token_urlsafe(24)
    mine = sql.Identifier(role)
    verifier = scram_verifier(password, new_salt())
    try:
        _create(session, mine, name, verifier, plan.backup.processes + SESSIONS)
    except psycopg.Error as error:
        raise DatabaseError(
            f"cannot act as tenant {name}",
            where=f"database {plan.access.database}",
            seen=str(error).strip().partition("\n")[0],
            allowed="a primary, whose superuser creates a temporary login",
            run=f"provision tenant add {name}, which repairs its roles; on a cluster: provision cluster status",
        ) from None
    clock = threading.Timer(limit_s, _end, (plan, role))
    clock.daemon = True
    if limit_s:
        clock.start()
    try:
        yield Login(role, password, plan.server.url(plan.access.database, role))
    finally:
        clock.cancel()
        # A server that is gone, or a role that owns something after all: the next command drops it.
        with suppress(psycopg.Error, DatabaseError):
            _drop(session, role, name)


def _end(plan: Plan, role: str) -> None:
    """End the sessions of a login, from a thread of its own. The login stays refused until it is dropped."""
    with suppress(psycopg.Error, DatabaseError), superuser(plan) as session:
        session.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(role)))
        _terminate(session, role)


def _terminate(session: Connection, role: str) -> bool:
    """End the sessions of a login; return whether there were any."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
    return bool(session.execute(query, (role,)).fetchall())


def _create(session: Connection, mine: sql.Identifier, name: str, verifier: str, sessions: int) -> None:
    with session.transaction():
        # In a fleet, sessions of other nodes act as the tenant, so this node alone needs the login.
        session.execute("SET LOCAL citus.enable_ddl_propagation TO off")
        until = session.execute("SELECT (now() + %s::interval)::text", (VALID,)).fetchone()
        assert until is not None  # noqa: S101 - a SELECT without FROM gives a row
        for statement in (
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} VALID UNTIL {} CONNECTION LIMIT {} IN ROLE {}").format(
                mine, sql.Literal(verifier), sql.Literal(until[0]), sql.Literal(sessions), sql.Identifier(name)
            ),
            sql.SQL("COMMENT ON ROLE {} IS {}").format(mine, sql.Literal(_MARK)),
            sql.SQL("ALTER ROLE {} SET role = {}").format(mine, sql.Literal(name)),
            sql.SQL("ALTER ROLE {} SET search_path = {}, {}").format(
                mine, sql.Literal(name), sql.Literal(tenants.SHARED)
            ),
            # Each login would have entries of its own, which push those of lasting roles out.
            sql.SQL("ALTER ROLE {} SET pg_stat_statements.track = 'none'").format(mine),
        ):
            session.execute(statement)


def clean_up(session: Connection) -> list[str]:
    """Drop the logins of killed commands. Return their names."""
    rows = session.execute(
        "SELECT r.rolname::text, coalesce((SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g"
        " ON g.oid = m.roleid WHERE m.member = r.oid LIMIT 1), '') FROM pg_roles r"
        " JOIN pg_shdescription d ON d.objoid = r.oid AND d.classoid = 'pg_authid'::regclass"
        " WHERE d.description = %s AND r.rolvaliduntil < now() + %s::interval - %s::interval"
        " AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.usesysid = r.oid)",
        (_MARK, VALID, ABANDONED),
    ).fetchall()
    for role, owner in rows:
        _drop(session, str(role), str(owner))
    return [str(role) for role, _ in rows]


def _drop(session: Connection, role: str, owner: str) -> None:
    """End the login's sessions, give what it owns to the tenant's owner, and drop it."""
    mine = sql.Identifier(role)
    until = time.monotonic() + END_S
    # Sessions that were closed are mostly still ending. The server's own wait for that looks every 100 ms.
    while _terminate(session, role) and time.monotonic() < until:
        time.sleep(POLL_S)
    with session.transaction():  # one commit: maintenance and migrations drop a login for every tenant
        session.execute("SET LOCAL citus.enable_ddl_propagation TO off")
        if owner:
            session.execute(sql.SQL("REASSIGN OWNED BY {} TO {}").format(mine, sql.Identifier(owner)))
        session.execute(sql.SQL("DROP OWNED BY {}").format(mine))
        session.execute(sql.SQL("DROP ROLE {}").format(mine))
