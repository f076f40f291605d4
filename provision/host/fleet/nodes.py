"""What the coordinator knows of its fleet: the groups, and where each tenant is. Reads Citus's catalogue.

Source: Citus's documentation ("Metadata Tables Reference").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from provision.database import Connection, refuse_read_only
from provision.errors import DatabaseError, HostError, UsageError
from provision.host.tenants import login
from provision.plan.cluster import COORDINATOR, Fleet
from provision.plan.schema import Plan

SHARED = ("citus", "uuid-ossp", "vector")
_VERSIONS = "SELECT extname, extversion FROM pg_extension WHERE extname = ANY(%s)"
_GROUPS = """
SELECT groupid, nodeid, nodename, nodeport, isactive AND (metadatasynced OR groupid = 0), shouldhaveshards
FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid
"""
_PLACES = """
SELECT n.nspname::text, coalesce(min(p.groupid), -1)::int, coalesce(sum(z.size), 0)::bigint
FROM pg_dist_schema d JOIN pg_namespace n ON n.oid = d.schemaid
LEFT JOIN pg_dist_partition t ON t.colocationid = d.colocationid
LEFT JOIN pg_dist_shard s ON s.logicalrelid = t.logicalrelid
LEFT JOIN pg_dist_placement p ON p.shardid = s.shardid
LEFT JOIN citus_shard_sizes() z ON z.shard_id = s.shardid
GROUP BY 1 ORDER BY 1
"""
_COUNTS = "SELECT result FROM run_command_on_workers(%s) WHERE success"
_COUNT = """
SELECT coalesce(json_object_agg(name, json_build_array(rows, memories)), '{}') FROM (
    SELECT n.nspname AS name, coalesce(sum(pg_stat_get_live_tuples(c.oid)), 0)::bigint AS rows,
        coalesce(sum(pg_stat_get_live_tuples(c.oid)) FILTER (WHERE c.relname ~ '^memories_[0-9]+$'), 0)::bigint
            AS memories
    FROM pg_dist_schema d JOIN pg_namespace n ON n.oid = d.schemaid JOIN pg_class c ON c.relnamespace = n.oid
    WHERE c.relkind = 'r' GROUP BY 1) counted
"""
_LOAD = """
SELECT n.nspname::text, sum(t.query_count_in_this_period + t.query_count_in_last_period)::bigint
FROM citus_stat_tenants t JOIN pg_dist_schema d ON d.colocationid = t.colocation_id
JOIN pg_namespace n ON n.oid = d.schemaid GROUP BY 1
"""


@dataclass(frozen=True)
class Group:
    """A registered group. `host` and `port` are its primary's; `draining` receives no tenants."""

    number: int
    node: int
    """Citus's id of the primary."""
    host: str
    port: int
    active: bool
    draining: bool


@dataclass(frozen=True)
class Place:
    """A distributed tenant: the group that holds it, its bytes with indexes, and estimates of its rows."""

    tenant: str
    group: int
    size: int
    rows: int = 0
    memories: int = 0


def fleet_of(plan: Plan) -> Fleet:
    """Return the plan's fleet. Raises UsageError on a host outside fleets."""
    if plan.fleet is None:
        raise UsageError(
            "this host is not part of a fleet",
            where=plan.name,
            seen="no citus_group in its plan",
            allowed="a host with citus_group of 0 or more",
            run=plan.site(every=True),
        )
    return plan.fleet


def refuse_worker(plan: Plan) -> None:
    """Raise UsageError on a host that is not of the group of the coordinator."""
    fleet = fleet_of(plan)
    if fleet.worker:
        hosts = ", ".join(each.name for each in fleet.nodes if each.group == COORDINATOR)
        raise UsageError(
            "this host is a worker of the fleet",
            where=plan.name,
            seen=f"group {fleet.group}",
            allowed=f"the primary of group {COORDINATOR}",
            run=f"the same command on {hosts}",
        )


@contextmanager
def coordinator(plan: Plan) -> Iterator[Connection]:
    """Yield a superuser session on the coordinator's primary, whose errors end as DatabaseError.

    Raises UsageError and HostError on another host.
    """
    refuse_worker(plan)
    with login.superuser(plan) as session:
        refuse_read_only(session)
        try:
            yield session
        except psycopg.Error as error:
            raise DatabaseError(
                "the coordinator did not finish the command",
                where=f"database {plan.access.database}",
                seen=str(error).strip(),
                allowed=f"every group running, and one primary of group {COORDINATOR} all the time",
                run="provision fleet status, on the primary of group 0; then the same command again",
            ) from None


def groups(session: Connection) -> list[Group]:
    """Return the registered groups by number."""
    rows: list[tuple[Any, ...]] = session.execute(_GROUPS.encode()).fetchall()
    return [
        Group(int(number), int(node), str(host), int(port), bool(active), not shards and number != COORDINATOR)
        for number, node, host, port, active, shards in rows
    ]


def answers(session: Connection, query: str) -> dict[int, str]:
    """Run a query of one value on the primary of every group; return the answers of those that give one."""
    rows: list[tuple[Any, ...]] = session.execute(
        "SELECT n.groupid, r.result FROM run_command_on_all_nodes(%s) r JOIN pg_dist_node n ON n.nodeid = r.nodeid"
        " WHERE n.noderole = 'primary' AND r.success",
        (query,),
    ).fetchall()
    return {int(group): str(answer) for group, answer in rows}


def silent(session: Connection) -> list[int]:
    """Return the groups whose primary does not answer now."""
    return sorted({each.number for each in groups(session)} - set(answers(session, "SELECT 1")))


def refuse_silent(session: Connection) -> None:
    """Raise HostError if a group does not answer: its tenants would seem to have no size."""
    if found := silent(session):
        raise HostError(
            "a group of the fleet does not answer; no tenant was moved",
            seen=f"group {', '.join(map(str, found))}",
            allowed="every group running",
            run="provision fleet status",
        )


def places(session: Connection) -> list[Place]:
    """Return every distributed tenant by name."""
    rows: list[tuple[Any, ...]] = session.execute(_PLACES.encode()).fetchall()
    counted: dict[str, list[int]] = {}
    for (text,) in session.execute(_COUNTS, (_COUNT,)) if rows else ():
        counted |= json.loads(str(text))
    return [Place(str(name), int(group), int(size), *counted.get(str(name), (0, 0))) for name, group, size in rows]


def load(session: Connection) -> dict[str, int]:
    """Return the statements of each tenant in the last one to two minutes (citus_stat_tenants)."""
    rows: list[tuple[Any, ...]] = session.execute(_LOAD.encode()).fetchall()
    return {str(name): int(number) for name, number in rows}


def extensions(session: Connection) -> dict[str, str]:
    """Return the versions of the extensions that nodes must share: those of the session's own server."""
    rows: list[tuple[Any, ...]] = session.execute(_VERSIONS.encode(), (list(SHARED),)).fetchall()
    return {str(name): str(version) for name, version in rows}


def worker_extensions(session: Connection) -> dict[str, dict[str, str] | None]:
    """Return the same of each worker by its address, None for one that does not answer."""
    query = sql.SQL("SELECT json_object_agg(extname, extversion) FROM pg_extension WHERE extname IN ({})")
    text = query.format(sql.SQL(", ").join(map(sql.Literal, SHARED))).as_string(session)
    rows: list[tuple[Any, ...]] = session.execute(
        "SELECT nodename, success, result FROM run_command_on_workers(%s)", (text,)
    ).fetchall()
    return {str(host): json.loads(str(result)) if success else None for host, success, result in rows}


def find(found: list[Group], number: int) -> Group:
    """Return a registered worker group. Raises UsageError."""
    for each in found:
        if each.number == number and number != COORDINATOR:
            return each
    raise UsageError(
        "there is no such worker group",
        seen=f"group {number}",
        allowed=", ".join(str(each.number) for each in found if each.number != COORDINATOR) or "none is registered",
        run="provision fleet status",
    )
