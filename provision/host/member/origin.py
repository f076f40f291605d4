"""Which member brings the database of a new cluster. Reads and writes keys in etcd.

The member that has a database brings it; without one, the first of the inventory makes it.
"""

from __future__ import annotations

from provision.errors import HostError
from provision.host.cluster import access, orders
from provision.host.cluster.dcs import Dcs
from provision.plan.schema import Plan


def initialised(plan: Plan) -> str:
    """Return the system identifier of the cluster's database, "" before there is one. Raises HostError."""
    reach = access.of(plan)
    key = orders.initialize_key(reach.cluster.scope)
    return next((each.text for each in Dcs.of(reach, "patroni").read(key).values()), "")


def announce(plan: Plan) -> None:
    """Note in etcd whether this member has a database, before the cluster has one. Raises HostError."""
    found = access.required(plan)
    if not found.member or initialised(plan):
        return
    dcs, key = Dcs.of(access.of(plan)), f"{_folder(plan)}{found.member}"
    if (plan.server.data / "PG_VERSION").exists():
        dcs.put(key, "present")
    else:
        dcs.delete(key)


def brings(plan: Plan) -> str:
    """Return the member whose database becomes the cluster's: the one that has a database, or the first.

    Raises HostError if several have one: which of them to keep is not ours to decide.
    """
    found = access.required(plan)
    names = [key.removeprefix(_folder(plan)) for key in Dcs.of(access.of(plan)).read(_folder(plan))]
    holders = [each.name for each in found.members if each.name in names]
    if len(holders) > 1:
        raise HostError(
            "several members of a new cluster have a database",
            where=found.scope,
            seen=", ".join(holders),
            allowed="one, which the others are cloned from",
            run=f"move {plan.server.data_directory} away on the others, then run site.yml again",
        )
    return holders[0] if holders else found.members[0].name


def _folder(plan: Plan) -> str:
    return f"/provision/{access.required(plan).scope}/data/"
