"""Pool sizes per role, within the server's connections. Pure.

A profile's sizes are requests: a small server gets smaller pools. The user's sizes are never changed; they are refused
if their sum exceeds the server's connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provision.tuning.connections import OTHER_ROLES, SUPERUSER_RESERVED

LOOKUPS = 4  # connections of the pooler's own role for auth_query; each serves some thousand logins per second


@dataclass(frozen=True)
class Pools:
    """Sizes by role, the limit for their sum, and problems."""

    sizes: Mapping[str, int]
    limit: int
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Return the maximum number of the pooler's server connections."""
        return sum(self.sizes.values()) + LOOKUPS


def limits(roles: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the connection limits of the login roles in `database_roles`."""
    present = [role for role in roles if role.get("state", "present") == "present"]
    return {str(role["name"]): int(role.get("connection_limit", -1)) for role in present}


def clients(most: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Share the pooler's clients among the roles as their pools are: one role must not shut out the others."""
    total = sum(sizes.values())
    return {role: max(1, most * size // total) for role, size in sizes.items()}


def fit(
    max_connections: int, requested: Mapping[str, int], given: Mapping[str, int], limits: Mapping[str, int]
) -> Pools:
    """Choose sizes. `limits` holds each role's connection limit, -1 for none."""
    limit = max(1, max_connections - SUPERUSER_RESERVED - OTHER_ROLES)
    capped = {role: min(size, limits[role]) if limits.get(role, -1) > 0 else size for role, size in requested.items()}
    kept = {role: size for role, size in given.items() if size > 0}
    free = {role: size for role, size in capped.items() if role not in given}
    room = limit - LOOKUPS - sum(kept.values())
    warnings = []
    if free and sum(free.values()) > room:
        share = max(room, 0) / sum(free.values())
        free = {role: max(1, int(size * share)) for role, size in free.items()}
        while sum(free.values()) > room and max(free.values()) > 1:  # a minimum of 1 may exceed the share
            free[max(free, key=lambda role: free[role])] -= 1
        warnings.append(
            f"pools reduced to {', '.join(f'{role} {size}' for role, size in free.items())}: "
            f"max_connections {max_connections} leaves {limit} for pools"
        )
    sizes = {**{role: free[role] for role in requested if role in free}, **kept}
    refusals = [
        f"pgbouncer_pools.{role}: {size} exceeds the role's connection limit {limits[role]}; allowed "
        f"are 1 to {limits[role]}, or raise its connection_limit"
        for role, size in kept.items()
        if 0 <= limits.get(role, -1) < size
    ]
    refusals += [f"pgbouncer_pools.{role}: no such login role" for role in given if role not in limits]
    found = Pools(sizes, limit, tuple(refusals), tuple(warnings))
    if found.total > limit:
        shown = " + ".join(f"{role} {size}" for role, size in sizes.items())
        sentence = (
            f"pgbouncer_pools: {shown} + {LOOKUPS} for auth_query = {found.total} server connections, but "
            f"max_connections {max_connections} - {SUPERUSER_RESERVED} for administrators - {OTHER_ROLES} for direct "
            f"connections leaves {limit}: reduce the pools or raise postgresql_settings.max_connections"
        )
        return Pools(sizes, limit, (*found.refusals, sentence), found.warnings)
    return found
