"""Create and drop tenants, one command at a time on a host. Changes the database as the superuser."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql

from provision.database import Connection, identifier, refuse_read_only
from provision.errors import ConfirmationError, DatabaseError, UsageError
from provision.host import ownership
from provision.host.access import Access, Role
from provision.host.backup import journal
from provision.host.fleet import nodes
from provision.host.tenants import catalog, converge, login
from provision.plan import schema, tenants
from provision.plan.schema import Plan
from provision.plan.secrets import new_password, new_salt, scram_verifier

LOCK, WAIT_S = "tenants", 60
END_MS = 5000
"""Time limit for the sessions of a dropped tenant to end."""


@dataclass(frozen=True)
class Added:
    """Result of `add`: the changes, and the password of each role that got a new one."""

    name: str
    changes: tuple[str, ...]
    passwords: dict[str, str]


@contextmanager
def changing(plan: Plan) -> Iterator[Connection]:
    """Hold the host's lock for tenants and yield a superuser session on a primary.

    Raises DatabaseError and HostError, and UsageError on a worker of a fleet.
    """
    if plan.worker:
        nodes.refuse_worker(plan)
    until = time.monotonic() + WAIT_S
    while True:
        lock = journal.held(LOCK, "another command is changing the tenants of this host")
        try:
            lock.__enter__()
            break
        except journal.HeldError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    try:
        with login.superuser(plan) as session:
            refuse_read_only(session)
            login.clean_up(session)
            yield session
    finally:
        lock.__exit__(None, None, None)


def add(plan: Plan, name: str, *, connections: int = 0, new_passwords: bool = False, adopt: bool = False) -> Added:
    """Create a tenant, or repair one: its roles, its schema and its grants. Migrates nothing.

    Roles without a password get a random one; with `new_passwords` all do. `adopt` gives the objects of an existing
    schema to the tenant, after a restore that gave them to the database's owner. Raises UsageError, DatabaseError.
    """
    if why := tenants.problem(name):
        raise UsageError("this name cannot be a tenant's", seen=name, allowed=why.removeprefix("expected "))
    taken = {each.name for each in plan.access.roles} | {plan.access.owner}
    if clash := tenants.collisions(name, taken):
        raise UsageError(
            "this name cannot be a tenant's",
            seen=f"role {clash[0]} belongs to the database",
            allowed="a name whose roles the inventory does not have",
        )
    with changing(plan) as session:
        try:
            return _add(plan, session, name, connections=connections, renew=new_passwords, adopt=adopt)
        except psycopg.Error as error:
            raise DatabaseError(
                f"tenant {name} is incomplete",
                where=f"database {plan.access.database}",
                seen=str(error).strip(),
                run=f"fix the reported problem, then: provision tenant add {name}",
            ) from None


def _add(plan: Plan, session: Connection, name: str, *, connections: int, renew: bool, adopt: bool) -> Added:
    access, database = Access(session), plan.access.database
    declared = {each.name: each for each in plan.access.tenants}.get(name)
    exists = name in catalog.marked(access.ask, database)
    if declared and not exists:
        raise UsageError(
            f"tenant {name} is declared in the inventory, so its passwords come from the vault",
            where="database_tenants",
            allowed="a run of site.yml, which creates it",
            run=plan.site("database,migrations"),
        )
    wanted, passwords = _roles(plan, access, name, declared, connections, renew=renew)
    converge.roles(access, database, {name: wanted})
    for role in wanted:
        if not access.ask("SELECT has_database_privilege(%s, %s, 'CONNECT')", role.name, database)[0][0]:
            statement = sql.SQL("GRANT CONNECT ON DATABASE {} TO {}")
            access.change(
                f"database {database}: GRANT CONNECT TO {role.name}",
                statement.format(sql.Identifier(database), sql.Identifier(role.name)),
            )
    if adopt:
        access.changes += ownership.give(session, name)
    converge.schemas(access, {name: wanted})
    converge.statistics(access, [each.name for each in plan.access.roles if each.state == "present"])
    return Added(name, tuple(access.changes), passwords)


def _roles(
    plan: Plan, access: Access, name: str, declared: schema.Tenant | None, connections: int, *, renew: bool
) -> tuple[list[Role], dict[str, str]]:
    """Return the roles with their verifiers, and the new passwords. An existing limit is kept unless one is given."""
    found = {
        str(row[0]): (row[1], int(row[2]))
        for row in access.ask(
            "SELECT rolname::text, rolpassword, rolconnlimit FROM pg_authid WHERE rolname = ANY(%s)",
            list(tenants.role_names(name)),
        )
    }
    listed = declared.roles if declared else tenants.roles(name, plan.access.tenant_limits, (), connections)
    wanted, passwords = [], {}
    for each in listed:
        if each.kind == "second":
            continue
        verifier, limit = found.get(each.name, (None, each.connection_limit))
        if verifier is None or (renew and not declared):
            passwords[each.name] = new_password()
            verifier = scram_verifier(passwords[each.name], new_salt())
        role = Role(each.name, each.kind, verifier, each.connection_limit, None, each.settings)
        wanted.append(role if declared or connections else replace(role, connection_limit=limit))
    return wanted, passwords


def confirm(plan: Plan, name: str, typed: str, what: str) -> None:
    """Raise ConfirmationError unless the typed name is the tenant's."""
    if typed != name:
        raise ConfirmationError(
            f"{what} destroys the data of tenant {name} and was not confirmed",
            name=name,
            kind="tenant",
            where=f"database {plan.access.database}",
            seen=f"confirmed: {typed or 'nothing'}",
            run=f"provision tenant {what} {name} ... --yes-destroy {name}",
        )


def drop(plan: Plan, session: Connection, name: str) -> list[str]:
    """Drop a tenant's schema and roles, and return the changes. `session` is that of `changing`.

    The roles cannot log in from the first statement on. Raises UsageError, DatabaseError.
    """
    access = Access(session)
    if name not in catalog.marked(access.ask, plan.access.database):
        catalog.find(session, name)
    listed = catalog.roles(access.ask, [name])
    _refuse_elsewhere(access, name, listed)
    try:
        for role in listed:
            access.change(f"role {role}: NOLOGIN", sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(role)))
        _end(session, listed)
        with session.transaction():
            owned = access.ask("SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = %s", name)
            if owned and owned[0][0] == name:
                access.change(f"schema {name}: dropped", sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
            roles = sql.SQL(", ").join(map(sql.Identifier, listed))
            access.change(
                f"roles {', '.join(listed)}: dropped", sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(roles, roles)
            )
    except psycopg.Error as error:
        raise DatabaseError(
            f"tenant {name} could not be dropped; its roles cannot log in",
            where=f"database {plan.access.database}",
            seen=str(error).strip(),
            run=f"provision tenant drop {name}; to keep it: provision tenant add {name}",
        ) from None
    return access.changes


def _refuse_elsewhere(access: Access, name: str, roles: Sequence[str]) -> None:
    """Raise UsageError for a tenant with objects in another database, such as one that a restore kept."""
    found = access.ask(
        "SELECT DISTINCT d.datname::text FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid"
        " JOIN pg_roles r ON r.oid = s.refobjid WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY(%s)"
        " AND d.datname <> current_database() ORDER BY 1",
        list(roles),
    )
    if found:
        other = identifier(str(found[0][0]))
        raise UsageError(
            f"tenant {name} has objects in another database; nothing was changed",
            where=f"database {found[0][0]}",
            seen="a restore keeps the database that it replaces",
            allowed="a tenant of one database",
            run=f"when it is no longer needed: runuser -u postgres -- psql -c 'DROP DATABASE {other}'",
        )


def _end(session: Connection, roles: Sequence[str]) -> None:
    session.execute(
        "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE usename = ANY(%s)", (END_MS, list(roles))
    )


def empty(session: Connection, name: str) -> None:
    """Replace a tenant's schema by an empty one; its roles and their passwords stay. Raises DatabaseError."""
    catalog.find(session, name)
    mine = sql.Identifier(name)
    access = Access(session)
    try:
        with session.transaction():
            session.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(mine))
            converge.schemas(access, converge.present(access, [name]))
    except psycopg.Error as error:
        raise DatabaseError(
            f"the schema of tenant {name} could not be emptied; it is unchanged",
            where=f"database {session.info.dbname}",
            seen=str(error).strip(),
        ) from None


def still_held(plan: Plan, name: str) -> dict[str, Any]:
    """Return the backups that hold a dropped tenant, and when each of them expires."""
    from provision.host.backup import dump, tool

    held: dict[str, Any] = {"dumps": [path.name for path in dump.find(plan)], "sets": [], "until": []}
    if held["dumps"]:
        held["until"].append(
            f"dumps expire when they are older than {plan.backup.dump_keep_days} days and {plan.backup.dump_keep} "
            "newer ones exist (backup_dump_keep_days, backup_dump_keep)"
        )
    for repository in plan.backup.repositories if plan.backup.physical else ():
        held["sets"] += [each.label for each in tool.info(plan.backup.stanza, repository.number).sets]
        held["until"].append(
            f"physical backups and their WAL in {repository.place} expire with the full backup after "
            f"{repository.retention_full} newer full ones (docs/a-second-repository.md)"
            if repository.number > 1
            else f"physical backups and their WAL expire with the full backup after {repository.retention_full} newer "
            "full ones (backup_retention_full)"
        )
    held["until"].append(f"the export of the tenant is kept until you delete it; names of tenant {name} stay in logs")
    return held
