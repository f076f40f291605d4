"""Converge a fleet: every group of the plan is registered, every migrated tenant is distributed. Does IO."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from provision.database import Connection, is_standby
from provision.errors import DatabaseError, HostError, ProvisionError
from provision.host.fleet import code, nodes
from provision.host.migrate.ledger import Ledger
from provision.host.tenants import catalog
from provision.plan.schema import Plan

REGISTERED_S = 180
"""Longest wait for Patroni to register a group: it tries again in each loop."""
POLL_S = 1.0


@dataclass(frozen=True)
class Done:
    """What `apply` did: tenants that it distributed, and sentences about what it left."""

    distributed: tuple[str, ...]
    warnings: tuple[str, ...]


def idle(plan: Plan) -> bool:
    """Return whether this host has nothing to converge: it is a worker, or a replica of the coordinator."""
    return nodes.fleet_of(plan).worker or is_standby(plan.server.url(plan.access.database))


def apply(plan: Plan, say: Callable[[str], None]) -> Done:
    """Converge, on the coordinator's primary. Raises HostError and DatabaseError."""
    with nodes.coordinator(plan) as session:
        known = _registered(plan, session, say)
        _admit(plan, session)
        code.let_in(session)
        done, warnings = [], []
        for name in pending(session):
            say(f"distributing tenant {name}")
            try:
                distribute(session, name)
                done.append(name)
            except ProvisionError as error:
                if session.closed:
                    raise
                warnings.append(f"tenant {name} stays on the coordinator: {error.what}: {error.seen}")
    wanted = nodes.fleet_of(plan).groups
    strangers = [each.number for each in known if each.number not in wanted]
    warnings += [
        f"group {number} is registered but not in the inventory; drain it, then: provision fleet remove {number}"
        for number in strangers
    ]
    return Done(tuple(done), tuple(warnings))


def _admit(plan: Plan, session: Connection) -> None:
    """Grant CONNECT to the roles of tenants on workers that lack it: a new group gets their roles alone."""
    roles = catalog.roles(lambda query, *given: session.execute(query.encode(), given).fetchall(),
                          [each.name for each in catalog.known(session)])  # fmt: skip
    if not roles:
        return
    listed = sql.SQL(", ").join(map(sql.Literal, roles))
    query = sql.SQL(
        "SELECT count(*) FROM pg_roles"
        " WHERE rolname IN ({}) AND NOT has_database_privilege(rolname, current_database(), 'CONNECT')"
    ).format(listed)
    lacking = session.execute(
        "SELECT 1 FROM run_command_on_workers(%s) WHERE NOT success OR result <> '0'", (query.as_string(session),)
    ).fetchone()
    if lacking:  # Citus repeats it on every node
        session.execute(
            sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(
                sql.Identifier(plan.access.database), sql.SQL(", ").join(map(sql.Identifier, roles))
            )
        )


def pending(session: Connection) -> list[str]:
    """Return the tenants that are migrated and not distributed yet."""
    there = {each.tenant for each in nodes.places(session)}
    return [each.name for each in catalog.known(session) if each.sound and each.name not in there
            and _migrated(session, each.name)]  # fmt: skip


def distribute(session: Connection, name: str) -> None:
    """Distribute a tenant's schema: one group then holds it. Raises DatabaseError; the schema is then as it was."""
    with code.kept_out(session, name):
        try:
            session.execute("SELECT citus_schema_distribute(%s)", (name,))
        except psycopg.Error as error:
            raise DatabaseError(
                f"tenant {name} cannot be distributed; it stays on the coordinator",
                where=f"database {session.info.dbname}",
                seen=str(error).strip(),
                allowed="every group running, and objects that Citus can distribute",
                run="provision fleet status; then: provision fleet apply",
            ) from None


def _migrated(session: Connection, name: str) -> bool:
    """Return whether a tenant has tables: the first migration works on a plain schema alone."""
    try:
        state, _ = Ledger(session, name).peek()
    except DatabaseError:
        return False
    return state.version > 0 and not state.dirty


def _registered(plan: Plan, session: Connection, say: Callable[[str], None]) -> list[nodes.Group]:
    """Wait until Patroni has registered every group of the plan. Raises HostError."""
    wanted, said = nodes.fleet_of(plan).groups, ""
    until = time.monotonic() + REGISTERED_S
    while True:
        found = nodes.groups(session)
        missing = sorted(set(wanted) - {each.number for each in found if each.active})
        if not missing:
            return found
        text = f"waiting for group {', '.join(map(str, missing))}"
        if text != said:
            say(text)
            said = text
        if time.monotonic() > until:
            raise HostError(
                f"Patroni did not register every group within {REGISTERED_S} s",
                where=f"fleet {nodes.fleet_of(plan).name}",
                seen=text,
                allowed="a primary in each group, with the same database and extension",
                run="journalctl -u patroni -n 50, on this host",
            )
        time.sleep(POLL_S)


def distribute_new(plan: Plan, name: str) -> bool:
    """Distribute a tenant that was created and migrated on a coordinator; False elsewhere, and if it is distributed."""
    if plan.fleet is None or plan.worker:
        return False
    with nodes.coordinator(plan) as session:
        there = session.execute(
            "SELECT 1 FROM pg_dist_schema d JOIN pg_namespace n ON n.oid = d.schemaid WHERE n.nspname = %s", (name,)
        ).fetchone()
        if there or not _migrated(session, name):
            return False
        distribute(session, name)
    return True
