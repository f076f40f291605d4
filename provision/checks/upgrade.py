"""What an upgrade of PostgreSQL or of the system leaves to be done: an open upgrade, a kept cluster, stale indexes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provision.checks.finding import Severity
from provision.checks.registry import Row, Scope, check
from provision.database import Connection
from provision.host.server.cluster import Postmaster
from provision.host.upgrade import commands, journal, run
from provision.plan.schema import Plan
from provision.system import moment

KEPT_DAYS = 7
"""How long the old cluster may stay without a finding: time to see a week's work on the new major."""
COLLATIONS = b"""
SELECT format('collation %s was %s, the system has %s', c.oid::regcollation, collversion,
  pg_collation_actual_version(c.oid))
FROM pg_collation c WHERE collversion <> pg_collation_actual_version(c.oid) ORDER BY 1
"""
DATABASE = b"""
SELECT format('the collation of database %s was %s, the system has %s', datname, datcollversion,
  pg_database_collation_actual_version(oid))
FROM pg_database
WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)
"""
DATABASES_SINCE = 150000


@check(
    "upgrade",
    area="versions",
    expected=f"a finished upgrade, whose old cluster is deleted within {KEPT_DAYS} days",
    why="an open upgrade leaves the server stopped at the next boot, and an old cluster takes disk space",
    fix="# see docs/move-to-another-major.md",
)
def upgrade(plan: Plan) -> Iterator[Row]:
    """Report an upgrade that was not finished, and a cluster that is kept too long."""
    facts = journal.read()
    state = journal.state(facts)
    fix = commands.again(plan, facts.get("to"), facts.get("method"))
    if state in journal.GOING_BACK:
        fix = run.way_back(plan, facts)
        yield f"a rollback is not finished: {journal.described(facts)}", fix, Severity.CRITICAL
    elif state in (journal.COPYING, *journal.DOWN, journal.SERVING):
        severity = Severity.WARNING if state == journal.COPYING else Severity.CRITICAL
        yield f"an upgrade is not finished: {journal.described(facts)}", fix, severity
    elif journal.half_moved(facts):
        seen = f"the replicas have not left the other cluster, and nothing can take over: {journal.described(facts)}"
        yield seen, fix if state == journal.FINISHED else commands.rollback(plan), Severity.CRITICAL
    elif state == journal.FINISHED and facts.get("method") == "logical" and _stopped(facts):
        seen = f"the old server does not run, so the new one keeps WAL for it: {journal.described(facts)}"
        yield seen, f"{fix}  # or delete it: {commands.release(plan)}", Severity.WARNING
    elif journal.kept(facts) and (days := (time.time() - moment(str(facts["when"]))) / 86400) > KEPT_DAYS:
        seen = f"a cluster that no longer serves is kept for {days:.0f} days: {journal.described(facts)}"
        yield seen, commands.release(plan)


def _stopped(facts: dict[str, Any]) -> bool:
    """Whether the old server does not run."""
    return Postmaster.read(Path("/var/lib/postgresql", str(facts.get("from")), "main")) is None


@check(
    "collation",
    scope=Scope.DATABASE,
    area="schema",
    expected="collations of the version with which their indexes were built",
    why="an index in the order of another version misses rows, and unique indexes accept duplicates",
    fix="# REINDEX DATABASE CONCURRENTLY, then ALTER COLLATION or ALTER DATABASE ... REFRESH COLLATION VERSION",
    every_database=True,
)
def collation(session: Connection) -> Iterator[Row]:
    """Report collations that the system's libraries have changed since their indexes were built."""
    rows = session.execute(COLLATIONS).fetchall()
    if session.info.server_version >= DATABASES_SINCE:
        rows += session.execute(DATABASE).fetchall()
    if rows:
        yield "; ".join(str(row[0]) for row in rows)
