"""Section cluster of the plan: members, etcd, ports and timers. Pure; standard library only, because hosts read it too.

`plan.topology` makes and judges it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provision import addresses

COORDINATOR = 0
"""The group of a fleet that knows where each tenant is."""
PRIMARY = "@primary@"
"""Stands for the primary's address in the pooler's configuration; the follower replaces it."""


@dataclass(frozen=True)
class Member:
    """A database host of a cluster, as the others reach it. `name` is its name in the inventory and in Patroni."""

    name: str
    address: str
    tls_name: str
    """The name in its certificate: `address`, or the name behind it."""
    port: int
    pooler_port: int


@dataclass(frozen=True)
class DcsMember:
    """A host that runs etcd for a cluster."""

    name: str
    address: str
    tls_name: str


@dataclass(frozen=True)
class PoolerHost:
    """A host of the group pooler: PgBouncer without a server, which follows the primary. `port` is PgBouncer's."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class Node:
    """A database host of a fleet, as the others reach it."""

    name: str
    group: int
    address: str
    port: int


@dataclass(frozen=True)
class Fleet:
    """Clusters that Citus joins, and the group that this host's cluster is. Group 0 is the coordinator."""

    name: str
    group: int
    nodes: tuple[Node, ...]
    """Every database host of the fleet, by group."""

    @property
    def worker(self) -> bool:
        """Whether this group holds tenants, and not the tables of all."""
        return self.group > COORDINATOR

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups, the coordinator's first."""
        return tuple(sorted({each.group for each in self.nodes}))

    @property
    def others(self) -> tuple[Node, ...]:
        """The hosts of other groups."""
        return tuple(each for each in self.nodes if each.group != self.group)


@dataclass(frozen=True)
class Cluster:
    """A group of database hosts under Patroni, and the etcd members that they agree through.

    Every host has the same section, but for `member`, `dcs_member`, `pooler` and `watchdog`.
    """

    scope: str
    """Patroni's name of the cluster. An inventory may have several."""
    member: str
    """This host's name among `members`, "" on a host without a database."""
    dcs_member: str
    """This host's name among `dcs`, "" where it runs no etcd."""
    members: tuple[Member, ...]
    dcs: tuple[DcsMember, ...]
    dcs_token: str
    """Name of the etcd cluster: its members refuse others."""
    rest_port: int
    client_port: int
    peer_port: int
    synchronous: str
    """quorum, on or off; on where Patroni has no quorum mode."""
    replication_role: str
    rewind_role: str
    common_name: str
    """Of the members' certificates, which log in as the two roles above."""
    dynamic: Mapping[str, Any]
    """Patroni's dynamic configuration: timers, synchronous mode, and settings that must be equal on all members."""
    watchdog: bool
    """Patroni uses /dev/watchdog of this host."""
    pooler: str = ""
    """This host's name among `poolers`, "" on a host of another group."""
    poolers: tuple[PoolerHost, ...] = ()
    """Hosts of the group pooler that follow this cluster."""
    scopes: tuple[str, ...] = ()
    """Names of all clusters of the inventory: several may share one etcd."""
    fleet: Fleet | None = None
    """None outside fleets; otherwise this cluster is one of its groups, and `scope` is NAME/GROUP."""

    @property
    def here(self) -> Member:
        """This host. Raises KeyError on a host that is no member."""
        return {each.name: each for each in self.members}[self.member]

    @property
    def followers(self) -> tuple[str, ...]:
        """Names of every pooler that follows the primary: the members' first."""
        return (*(each.name for each in self.members), *(each.name for each in self.poolers))

    @property
    def hosts(self) -> Mapping[str, str]:
        """Address of every host, by name."""
        found = {each.name: each.address for each in self.poolers}
        found |= {each.name: each.address for each in self.dcs}
        return found | {each.name: each.address for each in self.members}

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Host and port of every etcd member, this host's own first."""
        own = sorted(self.dcs, key=lambda each: each.name != self.dcs_member)
        return tuple(addresses.endpoint(each.address, self.client_port) for each in own)
