"""Connections that the network may hold on PostgreSQL's own port, finished logins or not. Pure.

A login without a password has no role yet, so no limit of a role counts it, and before authentication the reserved
connections are open to it too. The firewall counts it. The share leaves free what the pools, the superuser, backup and
monitoring need: these log in over the socket or the loopback, which the firewall does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

from provision.tuning.connections import RESERVED, SUPERUSER_RESERVED

COMPUTED = -1
LEAST = 2
"""Fewest connections of the share, also where the pools of a small server leave fewer."""
OPERATORS = 2 * (SUPERUSER_RESERVED + RESERVED)
"""Sessions of administrators, backup and monitoring, and as many that PostgreSQL keeps free for further ones of them
(superuser_reserved_connections and reserved_connections) while the pooler opens its connections."""
ADDRESS_PART = 0.75
"""Part of the share that one address may hold, so that one address alone shuts out no other."""


@dataclass(frozen=True)
class NetworkShare:
    """Most connections from the network, and most from one address (IPv6: one /64); 0 is no limit."""

    connections: int = 0
    per_address: int = 0
    refusals: tuple[str, ...] = ()


def of_pooler(max_clients: int, requested: int) -> int:
    """Choose the pooler's clients from one address; `requested` may be COMPUTED, or 0 for no limit."""
    return max(1, int(max_clients * ADDRESS_PART)) if requested == COMPUTED else requested


def share(max_connections: int, pools: int, requested: int) -> NetworkShare:
    """Choose the share. `pools` is the most server connections of the pooler; `requested` may be COMPUTED or 0."""
    if requested == 0:
        return NetworkShare()
    most = max(LEAST, max_connections - OPERATORS - pools)
    connections = most if requested == COMPUTED else requested
    if connections > most:
        sentence = (
            f"postgresql_network_connections is {requested}: max_connections {max_connections} - "
            f"{OPERATORS} for administrators, backup and monitoring - {pools} for the pools leaves {most}: reduce it "
            "or pgbouncer_pools, or raise postgresql_settings.max_connections"
        )
        return NetworkShare(refusals=(sentence,))
    return NetworkShare(connections, max(1, int(connections * ADDRESS_PART)))
