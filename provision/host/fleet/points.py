"""Restore points of a whole fleet, and what a removed group leaves in etcd. Does IO, on the coordinator."""

from __future__ import annotations

import re
from typing import Any

import psycopg

from provision.database import Connection
from provision.errors import DatabaseError, UsageError
from provision.host.cluster import access, orders
from provision.host.cluster.dcs import Dcs
from provision.host.fleet import nodes
from provision.plan.schema import Plan

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""A restore point's name has at most 63 bytes (manual, pg_create_restore_point)."""


def make(session: Connection, name: str) -> dict[int, str]:
    """Make a restore point in every group and archive it; return the WAL position (LSN) of each group.

    Citus blocks distributed commits meanwhile, so that no transaction of several groups lies across the points. Raises
    UsageError and DatabaseError.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            "this is not the name of a restore point",
            seen=name,
            allowed="1 to 63 letters, digits, _ . and -, a letter or digit first",
        )
    every = nodes.groups(session)
    try:
        session.execute("SELECT citus_create_restore_point(%s)", (name,))
        rows: list[tuple[Any, ...]] = session.execute(
            "SELECT groupid, result FROM run_command_on_all_nodes('SELECT pg_switch_wal()') r"
            " JOIN pg_dist_node n ON n.nodeid = r.nodeid WHERE n.noderole = 'primary' AND r.success"
        ).fetchall()
    except psycopg.Error as error:
        raise DatabaseError(
            "the restore point was not made in every group",
            where=f"database {session.info.dbname}",
            seen=str(error).strip(),
            allowed="every group running",
            run="provision fleet status; then use another name",
        ) from None
    found = {int(group): str(position) for group, position in rows}
    if missing := sorted({each.number for each in every} - set(found)):
        raise DatabaseError(
            "the restore point is not archived in every group yet",
            seen=f"group {', '.join(map(str, missing))}",
            run="provision backup status, on its primary",
        )
    return found


def forget(plan: Plan, number: int) -> None:
    """Delete what a removed group's Patroni wrote into etcd, which would register it again. Raises HostError."""
    reach, name = access.controlling(plan), nodes.fleet_of(plan).name
    scope = f"{name}/{number}"
    for user, folder in (("patroni", f"/service/{scope}/"), (access.POOLER_USER, orders.folder(scope))):
        dcs = Dcs.of(reach, user)
        for key in dcs.read(folder):
            dcs.delete(key)
