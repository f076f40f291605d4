"""Move tenants between the groups of a fleet while they are used. Does IO, on the coordinator.

A move copies the tenant by logical replication; writes wait only while Citus changes the place, at the end. Citus's
own record says where a tenant is, so that an interrupted plan is continued by the same command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psycopg

from provision.database import Connection
from provision.errors import DatabaseError, ProvisionError, UsageError, some
from provision.host.fleet import code, nodes
from provision.plan.cluster import COORDINATOR

BY = ("size", "load")
PATRONI = "Patroni citus"
"""Application name of the session in which Patroni registers nodes."""
_KEYLESS = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r' AND (c.relreplident = 'n' OR c.relreplident = 'd'
    AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)) ORDER BY 1
"""


@dataclass(frozen=True)
class Move:
    """One tenant and the groups between which it moves. `weight` is its bytes or statements."""

    tenant: str
    source: int
    target: int
    weight: int


def move(session: Connection, name: str, number: int) -> float:
    """Move a tenant to a group and return the seconds; 0 if it is there. Raises UsageError and DatabaseError."""
    target = nodes.find(nodes.groups(session), number)
    found = {each.tenant: each for each in nodes.places(session)}
    if name not in found:
        raise UsageError(
            "this tenant is not distributed",
            where=f"database {session.info.dbname}",
            seen=name,
            allowed=", ".join(found) or "there is none",
            run="provision fleet apply",
        )
    if found[name].group < COORDINATOR:
        raise UsageError(
            f"tenant {name} has no tables, so there is nothing to move",
            where=f"database {session.info.dbname}",
            allowed="a tenant that has been migrated",
            run=f"provision migrate up --tenant {name}",
        )
    if found[name].group == number:
        return 0.0
    _refuse_keyless(session, name)
    begun = time.monotonic()
    with code.kept_out(session, name):
        try:
            session.execute("SELECT citus_schema_move(%s, %s, %s, 'auto')", (name, target.host, target.port))
        except psycopg.Error as error:
            where = "; where it is now is unknown" if session.closed else f"; it is still in group {found[name].group}"
            raise DatabaseError(
                f"the move of tenant {name} failed{where}",
                where=f"group {number}",
                seen=str(error).strip(),
                run=f"provision fleet status; then: provision tenant move {name} --to {number}",
            ) from None
    return time.monotonic() - begun


def _refuse_keyless(session: Connection, name: str) -> None:
    """Raise UsageError for tables whose UPDATE and DELETE would fail during a move, which replicates them by key."""
    if found := [str(row[0]) for row in session.execute(_KEYLESS, (name,))]:
        raise UsageError(
            f"tenant {name} has tables without a primary key: UPDATE and DELETE on them would fail while it moves",
            where=f"schema {name}",
            seen=some(found),
            allowed="a primary key on each table",
            run="add it by a migration of the tenant, then repeat this command",
        )


def plan(
    places: Iterable[nodes.Place], weights: Mapping[str, int], groups: Iterable[nodes.Group], only: int = COORDINATOR
) -> list[Move]:
    """Return the moves that even out the weight of the groups, the heaviest tenants first. Pure.

    A draining group gives all its tenants away. A tenant moves only if that narrows the gap between two groups. `only`
    is a worker group whose tenants alone may move.
    """
    workers = [each for each in groups if each.number != COORDINATOR]
    open_ = {each.number for each in workers if not each.draining}
    if not open_:
        return []
    where = {each.tenant: each.group for each in places if each.group > COORDINATOR}  # an empty one has none
    total = dict.fromkeys((each.number for each in workers), 0)
    for tenant, number in where.items():
        total[number] = total.get(number, 0) + weights.get(tenant, 0)
    moves = []
    for tenant in sorted(where, key=lambda each: (-weights.get(each, 0), each)):
        source, weight = where[tenant], weights.get(tenant, 0)
        if only not in (COORDINATOR, source):
            continue
        target = min(open_, key=lambda each: (total[each], each))
        if source in open_ and (source == target or total[source] - total[target] <= weight):
            continue
        moves.append(Move(tenant, source, target, weight))
        total[source] = total.get(source, 0) - weight
        total[target] += weight
    return moves


def run(
    session: Connection, moves: list[Move], interrupted: Callable[[], bool], narrate: Callable[[str], None]
) -> tuple[list[Move], dict[str, str]]:
    """Make the moves one at a time; return those that were made, and why a tenant was not moved, by its name.

    First unlocks the owners that killed commands left locked out. A signal stops before the next move. Raises
    DatabaseError if the session is lost.
    """
    code.let_in(session)
    done, failed = [], {}
    for number, each in enumerate(moves, 1):
        if interrupted():
            break
        narrate(f"{number} of {len(moves)}: tenant {each.tenant} from group {each.source} to {each.target}")
        try:
            move(session, each.tenant, each.target)
            done.append(each)
        except ProvisionError as error:
            if session.closed:
                raise
            failed[each.tenant] = f"{error.what}: {error.seen}"
    return done, failed


def refuse_last(groups: Iterable[nodes.Group], number: int) -> None:
    """Raise UsageError if no other group could receive the tenants of one that is drained."""
    open_ = [each.number for each in groups if each.number not in (COORDINATOR, number) and not each.draining]
    if not open_:
        raise UsageError(
            "no other group can receive the tenants",
            seen=f"group {number} is the only one that accepts tenants",
            allowed="another worker group that is not draining",
            run="provision fleet drain GROUP --undo, for another group, or add a group",
        )


def set_draining(session: Connection, number: int, draining: bool) -> bool:
    """Set whether a group accepts tenants; False if it is so already. Raises UsageError."""
    group = nodes.find(nodes.groups(session), number)
    if group.draining == draining:
        return False
    session.execute(
        "SELECT citus_set_node_property(%s, %s, 'shouldhaveshards', %s)", (group.host, group.port, not draining)
    )
    return True


def refuse_filled(session: Connection, number: int) -> None:
    """Raise UsageError for a group that holds tenants."""
    held = [each.tenant for each in nodes.places(session) if each.group == number]
    if held:
        raise UsageError(
            f"group {number} holds tenants",
            seen=some(held),
            allowed="an empty group",
            run=f"provision fleet drain {number}",
        )


def remove(session: Connection, number: int) -> bool:
    """Remove the nodes of a stopped group; False if there are none. Raises DatabaseError.

    Patroni may hold a transaction for a switchover of the group that will never end: its session is ended. A
    disabled node is not contacted; the others learn of it at once, for the first worker can be disabled only so.
    """
    rows = session.execute(
        "SELECT nodename, nodeport, noderole = 'primary' FROM pg_dist_node WHERE groupid = %s ORDER BY 3", (number,)
    ).fetchall()
    session.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
        (PATRONI,),
    )
    try:
        for host, port, primary in rows:
            if primary:
                session.execute("SELECT citus_disable_node(%s, %s, true)", (host, port))
        for host, port, _ in rows:
            session.execute("SELECT citus_remove_node(%s, %s)", (host, port))
    except psycopg.Error as error:
        raise DatabaseError(
            f"group {number} was not removed",
            where=f"database {session.info.dbname}",
            seen=str(error).strip(),
            allowed="every other group running",
            run=f"provision fleet remove {number}",
        ) from None
    return bool(rows)
