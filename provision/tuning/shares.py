"""Connection limits of login roles, whose sum leaves the server's reserved connections free. Pure.

The limits of `database_roles` are the most that a role may have: a small server gives less, but never less than a
role's pool. Limits of the user's own roles are kept; they are refused if the sum exceeds the server's connections.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provision.tuning.connections import RESERVED, SUPERUSER_RESERVED
from provision.tuning.pools import LOOKUPS

SPARE = 4
"""Connections that no limit gives away where there is room: the superuser's dump has several sessions."""
LEAST = {"backup": RESERVED // 2, "monitor": RESERVED // 2, "pooler": LOOKUPS}
"""Fewest connections of a role by its kind, beside its pool."""


@dataclass(frozen=True)
class Shares:
    """The limit of each role, and problems."""

    limits: Mapping[str, int]
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def share(
    max_connections: int, roles: Sequence[Mapping[str, Any]], pools: Mapping[str, int], fixed: Collection[str]
) -> Shares:
    """Choose limits. `roles` have name, kind and connection_limit (-1: none), and `fixed` names the user's own."""
    most = {
        str(role["name"]): int(role.get("connection_limit", -1))
        for role in roles
        if role.get("state", "present") == "present"
    }
    kinds = {str(role["name"]): str(role["kind"]) for role in roles}
    bounded = {name: limit for name, limit in most.items() if limit >= 0}
    # The owner's migrations use a direct connection beside its pool.
    floor = {name: LEAST.get(kinds[name], max(1, pools.get(name, 0) + (kinds[name] == "owner"))) for name in bounded}
    least = {name: limit if name in fixed else min(limit, floor[name]) for name, limit in bounded.items()}
    room = max_connections - SUPERUSER_RESERVED
    total = sum(least.values())
    if total > room:
        shown = " + ".join(f"{name} {limit}" for name, limit in least.items())
        sentence = (
            f"connection_limit: {shown} = {total} connections, but max_connections {max_connections} - "
            f"{SUPERUSER_RESERVED} for administrators leaves {room}: reduce database_extra_roles.connection_limit or "
            "pgbouncer_pools, or raise postgresql_settings.max_connections"
        )
        return Shares(most, (sentence,))
    wanted = {name: bounded[name] - limit for name, limit in least.items()}
    part = min(1.0, max(0, room - total - SPARE) / max(1, sum(wanted.values())))
    found = {name: least[name] + int(extra * part) for name, extra in wanted.items()}
    open_ended = [name for name in fixed if most.get(name, 0) < 0]
    warnings = [
        f"role {name} has no connection_limit and can take the connections of every other role: set it in "
        "database_extra_roles"
        for name in open_ended
        if any(limit >= 0 for name, limit in bounded.items() if kinds[name] == "write")
    ]
    return Shares({**most, **found}, (), tuple(warnings))
