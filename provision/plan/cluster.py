"""Section cluster of the plan: members, etcd, ports and timers. Pure; standard library only, because hosts read it too.

`plan.topology` makes and judges it.
"""

from __future__ import annotations

from dataclasses import dataclass

from provision import addresses


@dataclass(frozen=True)
class Member:
    """A database host of a cluster, as the other members reach it. `name` is its name in the inventory and in Patroni."""

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
class Cluster:
    """A group of database hosts under Patroni, and the etcd members that they agree through.

    Every member has the same section, but for `member`, `dcs_member` and `watchdog`.
    """

    scope: str
    """Patroni's name of the cluster. An inventory may have several."""
    member: str
    """This host's name among `members`, "" on a host that only runs etcd."""
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
    strict: bool
    """Refuse writes while no replica confirms them."""
    synchronous_replicas: int
    """How many replicas confirm each commit."""
    ttl_s: int
    loop_wait_s: int
    retry_timeout_s: int
    primary_start_timeout_s: int
    maximum_lag_mb: int
    """Of a replica that may become primary by failover, when replication is asynchronous."""
    replication_role: str
    rewind_role: str
    watchdog: bool
    """This host has /dev/watchdog, and Patroni uses it."""
    patroni: str
    """Version of Patroni's package, "" where it is not known yet."""
    etcd: str

    @property
    def here(self) -> Member:
        """This host. Raises KeyError on a host that is no member."""
        return {each.name: each for each in self.members}[self.member]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Host and port of every etcd member, this host's own first."""
        own = sorted(self.dcs, key=lambda each: each.name != self.dcs_member)
        return tuple(addresses.endpoint(each.address, self.client_port) for each in own)
