"""Whether this host takes the backups of its cluster: the primary does, so that timers run on every member. Does IO.

Backups of the primary need no connection between members, and survive every switchover: the next timer on the new
primary continues the same stanza.
"""

from __future__ import annotations

from provision.database import ask, connect_pinned
from provision.plan.schema import Plan

SKIPPED = "this member is a replica: the primary of the cluster does it"


def replica(plan: Plan) -> bool:
    """Return whether this host is a replica of a cluster, as postgres. Raises DatabaseError if it does not answer."""
    if not plan.server.patroni:
        return False
    with connect_pinned(plan.server.url("postgres"), application="provision backup") as connection:
        return ask(connection, "SELECT pg_is_in_recovery()") == [(True,)]
