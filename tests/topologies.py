"""Plans of the members of a cluster for tests: three database hosts, built as a run builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from provision.plan import build, schema, topology
from provision.plan.context import Listed
from tests import plans

PASSPHRASE = "the cluster's secret of the test"  # noqa: S105
GIVEN: dict[str, Any] = {
    **plans.SAMPLE,
    "tls_enabled": True,
    "cluster_enabled": True,
    "cluster_passphrase": PASSPHRASE,
    "backup_repository_host": "192.0.2.7",
    "backup_repository_inventory_name": "backup1",
}
"""Variables of a member."""
SOURCE = {"citus_source": {"uri": "http://192.0.2.9/citus", "key": "/etc/citus.asc"}}
GROUPS = {"db1": 0, "db2": 1, "db3": 1, "db4": 2}
"""A fleet: a coordinator, and two workers, of which one has a second member."""
ADDRESSES = {f"db{number}": f"192.0.2.{number}" for number in range(1, 6)}


def listed(
    given: Mapping[str, Any] | None = None,
    *,
    dcs: tuple[str, ...] = (),
    count: int = 3,
    profile: str = "prod",
    poolers: tuple[str, ...] = (),
) -> tuple[Listed, ...]:
    """Give the hosts of an inventory: `count` database hosts, those of the group dcs, which may be among them, poolers.

    An address follows from the place in the list.
    """
    values = plans.values(profile, {**GIVEN, **(given or {})}).values
    shared = {option: values[option] for option in topology.OPTIONS}
    database = [f"db{number}" for number in range(1, count + 1)]
    names = dict.fromkeys([*database, *dcs, *poolers])
    return tuple(
        Listed(
            name, ADDRESSES.get(name, f"192.0.2.{100 + number}"), name in database, name in dcs, shared, name in poolers
        )
        for number, name in enumerate(names)
    )


def grouped(
    given: Mapping[str, Any] | None = None, groups: Mapping[str, int] | None = None, profile: str = "prod"
) -> tuple[Listed, ...]:
    """Give the hosts of a fleet, three of which run etcd; `groups` has the group of each."""
    groups = groups or GROUPS
    hosts = listed({**SOURCE, **(given or {})}, dcs=("db1", "db2", "db3"), count=len(groups), profile=profile)
    return tuple(replace(each, values={**each.values, "citus_group": groups[each.name]}) for each in hosts)


def in_fleet(
    name: str,
    given: Mapping[str, Any] | None = None,
    groups: Mapping[str, int] | None = None,
    *,
    profile: str = "prod",
    **context: Any,
) -> build.Built:
    """Build the plan of a host of a fleet, or the reasons why it is refused."""
    own = {**SOURCE, "citus_group": (groups or GROUPS)[name], **(given or {})}
    return built(name, own, profile=profile, hosts=grouped(given, groups, profile), **context)


def built(
    name: str = "db1",
    given: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
    *,
    profile: str = "prod",
    hosts: tuple[Listed, ...] = (),
    groups: Mapping[str, list[str]] | None = None,
    **context: Any,
) -> build.Built:
    """Build the plan of one host of a cluster, or the reasons why it is refused."""
    hosts = hosts or listed(given, profile=profile)
    address = {each.name: each.address for each in hosts}[name]
    found = {
        "all": [*(each.name for each in hosts), "backup1"],
        "database": [each.name for each in hosts if each.database],
        "dcs": [each.name for each in hosts if each.dcs],
        "pooler": [each.name for each in hosts if each.pooler],
        **(groups or {}),
    }
    own = {"addresses": [address], **(probe or {})}
    return plans.built(
        profile, {**GIVEN, **(given or {})}, own, name=name, address=address, listed=hosts, groups=found, **context
    )


def plan(name: str = "db1", given: Mapping[str, Any] | None = None, **changed: Any) -> schema.Plan:
    """Build a member's plan that must not be refused."""
    found = built(name, given, **changed)
    assert found.plan, found.problems
    return found.plan
