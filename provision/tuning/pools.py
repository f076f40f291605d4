"""How many server connections each role's pool may open, within what the server has. Pure.

The sizes of a profile are wishes, which a small server shrinks. Sizes that the user has set are kept, and refused
where they cannot all be open at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provision.tuning.connections import OTHER_ROLES, SUPERUSER_RESERVED

LOOKUPS = 4  # of the pooler's own role, for all databases: one answers some thousand logins a second
PER_ROLE_SINCE = (1, 23)  # of PgBouncer, whose users come from auth_query


@dataclass(frozen=True)
class Pools:
    """Sizes by role, the limit that they were fitted into, and what is wrong with them."""

    sizes: Mapping[str, int]
    limit: int
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Count every server connection that the pooler may open."""
        return sum(self.sizes.values()) + LOOKUPS


def limits(roles: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Read the connection limits of login roles, as `database_roles` has them."""
    present = [role for role in roles if role.get("state", "present") == "present"]
    return {str(role["name"]): int(role.get("connection_limit", -1)) for role in present}


def fit(max_connections: int, wished: Mapping[str, int], given: Mapping[str, int], limits: Mapping[str, int]) -> Pools:
    """Choose sizes. `limits` are the roles' own connection limits, -1 for none."""
    limit = max(1, max_connections - SUPERUSER_RESERVED - OTHER_ROLES)
    capped = {role: min(size, limits[role]) if limits.get(role, -1) > 0 else size for role, size in wished.items()}
    kept = {role: size for role, size in given.items() if size > 0}
    free = {role: size for role, size in capped.items() if role not in given}
    room = limit - LOOKUPS - sum(kept.values())
    warnings = []
    if free and sum(free.values()) > room:
        share = max(room, 0) / sum(free.values())
        free = {role: max(1, int(size * share)) for role, size in free.items()}
        while sum(free.values()) > room and max(free.values()) > 1:  # what the smallest were given above their share
            free[max(free, key=lambda role: free[role])] -= 1
        warnings.append(
            f"the pools were made smaller ({', '.join(f'{role} {size}' for role, size in free.items())}), for "
            f"max_connections {max_connections} leaves them {limit}"
        )
    sizes = {**{role: free[role] for role in wished if role in free}, **kept}
    refusals = [
        f"pgbouncer_pools.{role}: {size} is more than the role's own connection limit, {limits[role]}; allowed "
        f"are 1 to {limits[role]}, or raise its connection_limit"
        for role, size in kept.items()
        if 0 <= limits.get(role, -1) < size
    ]
    refusals += [f"pgbouncer_pools.{role}: there is no such login role" for role in given if role not in limits]
    found = Pools(sizes, limit, tuple(refusals), tuple(warnings))
    if found.total > limit:
        shown = " + ".join(f"{role} {size}" for role, size in sizes.items())
        sentence = (
            f"pgbouncer_pools: {shown} + {LOOKUPS} for looking users up = {found.total} server connections, but "
            f"max_connections {max_connections} - {SUPERUSER_RESERVED} for administrators - {OTHER_ROLES} beside the "
            f"pooler leaves {limit}: make the pools smaller, or postgresql_settings.max_connections larger"
        )
        return Pools(sizes, limit, (*found.refusals, sentence), found.warnings)
    return found
