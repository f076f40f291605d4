"""Restore points of a whole fleet. Does IO, on the coordinator."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import psycopg

from provision import system
from provision.database import Connection
from provision.errors import DatabaseError, UsageError
from provision.host.fleet import nodes
from provision.plan.schema import Plan

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,45}")
"""A restore point's name has at most 63 bytes (manual, pg_create_restore_point), 17 of which are the time."""
ARCHIVED_S = 120
FINISHED_S = 20
TIMELINE = 8
"""Digits of the timeline, with which the name of a WAL segment begins."""
_TIMELINE = "SELECT pg_walfile_name(pg_current_wal_lsn())"
_UNFINISHED = r"""
SELECT 1 FROM run_command_on_workers(
    $$SELECT coalesce(json_agg(gid), '[]') FROM pg_prepared_xacts WHERE gid LIKE 'citus\_%'$$) r,
    json_array_elements_text(CASE WHEN r.success THEN r.result::json ELSE '[]' END) g(gid)
JOIN pg_dist_transaction d ON d.gid = g.gid
"""
SEGMENT = 24
"""Length of the name of a WAL segment; history files and backup labels have more."""


def make(plan: Plan, session: Connection, name: str) -> tuple[str, dict[int, str]]:
    """Make a restore point in every group and wait until it is archived; return its name, and each group's WAL segment.

    The name ends with the time: recovery stops at the first point of a name, which may differ from group to group.
    Citus blocks distributed commits meanwhile, so that no transaction of several groups lies across the points. It
    first waits for transactions that are decided but not finished on every node, which a restore would have to decide
    again. A group that fails over meanwhile may lack the point. Raises UsageError and DatabaseError.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            "this is not the name of a restore point",
            seen=name,
            allowed="1 to 46 letters, digits, _ . and -, a letter or digit first",
        )
    if not plan.backup.physical:
        raise UsageError(
            "a fleet without physical backups cannot be restored to a point",
            seen="backup_physical is false",
            allowed="backup_physical: true, with a repository that all groups share",
        )
    full = f"{name}-{system.compact()}"
    every = {each.number for each in nodes.groups(session)}
    try:
        before = nodes.answers(session, _TIMELINE)
        with session.transaction():
            session.execute("LOCK TABLE pg_catalog.pg_dist_transaction IN EXCLUSIVE MODE")
            if not system.wait(lambda: session.execute(_UNFINISHED).fetchone() is None, FINISHED_S):
                raise DatabaseError(
                    "a transaction of several groups does not end, so no restore point was made",
                    where=f"database {session.info.dbname}",
                    seen="pg_prepared_xacts of a worker has a transaction of pg_dist_transaction",
                    run="provision fleet status; then the same command again",
                )
            session.execute("SELECT citus_create_restore_point(%s)", (full,))
        segments = nodes.answers(session, "SELECT pg_walfile_name(pg_switch_wal())")
        if changed := {each for each in every if segments.get(each, "")[:TIMELINE] != before.get(each, "")[:TIMELINE]}:
            raise DatabaseError(
                f"the restore point {full} may be missing in a group, which failed over or does not answer",
                seen=f"group {', '.join(map(str, sorted(changed)))}",
                allowed="no failover meanwhile",
                run="provision fleet status; then the same command again, which makes another point",
            )
        until = time.monotonic() + ARCHIVED_S
        while waiting := _unarchived(session, segments, every):
            if time.monotonic() > until:
                break
            time.sleep(0.5)
    except psycopg.Error as error:
        raise DatabaseError(
            "the restore point was not made in every group",
            where=f"database {session.info.dbname}",
            seen=str(error).strip(),
            allowed="every group running",
            run="provision fleet status; then use another name",
        ) from None
    if waiting:
        raise DatabaseError(
            f"the restore point {full} exists but is not archived in every group",
            seen=f"group {', '.join(map(str, sorted(waiting)))} after {ARCHIVED_S} s",
            allowed="a restore only once every group has archived it",
            run="provision backup status, on the primary of that group",
        )
    return full, segments


def _unarchived(session: Connection, segments: Mapping[int, str], every: set[int]) -> set[int]:
    """Return the groups whose segment is not archived; names of one timeline sort by age."""
    archived = nodes.answers(session, "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")
    return {number for number in every if archived.get(number, "")[:SEGMENT] < segments.get(number, "G")}
