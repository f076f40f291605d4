"""What a group that has left a fleet leaves in etcd. Does IO, on the coordinator."""

from __future__ import annotations

from provision.errors import UsageError
from provision.host.cluster import access, orders
from provision.host.cluster.dcs import Dcs
from provision.host.fleet import nodes
from provision.plan.schema import Plan


def forget(plan: Plan, number: int) -> None:
    """Delete what a stopped group's Patroni wrote into etcd, which would register it again.

    Raises UsageError while the group has a primary, HostError.
    """
    reach, name = access.controlling(plan), nodes.fleet_of(plan).name
    scope = f"{name}/{number}"
    dcs = Dcs.of(reach, "patroni")
    if leader := next((each.text for each in dcs.read(orders.leader_key(scope)).values()), ""):
        raise UsageError(
            f"group {number} still runs",
            seen=f"its primary is {leader}",
            allowed="a group whose hosts have left the inventory and stopped",
            run="systemctl disable --now patroni provision-follow pgbouncer, on each of its hosts",
        )
    for found, folder in ((dcs, orders.patroni_folder(scope)), (Dcs.of(reach), orders.folder(scope))):
        for key in found.read(folder):
            found.delete(key)
