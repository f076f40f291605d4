"""Judge the group pooler: hosts with PgBouncer and no server, which follow the primary of a cluster. Pure.

Every host of the inventory judges the whole group, so that a run is refused before it changes a member.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from provision import compatibility
from provision.plan import network, ports, topology
from provision.plan.context import Context, Listed, Verdict

GROUP = "pooler"
OTHERS = {
    "database": "each database host has a pooler already: remove it from the group pooler",
    "dcs": "a host that runs etcd has certificates that a pooler host must not have: use separate hosts",
    "backup": "a backup host must not reach the databases: use another host for the pooler",
}
"""Groups that share no host with the group pooler, and the next step."""
SAME = ("postgresql_port", "cluster_rest_port", "etcd_client_port", "database_owner", "database_name", "tls_enabled")
"""Options with which a pooler reaches the members."""


def judge(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    """Refuse a group that follows no cluster; on a host of the group, judge PgBouncer's addresses and port too."""
    verdict.refusals += _groups(context)
    found = [each for each in context.listed if each.pooler]
    for each in found:
        verdict.refusals += _follows(each, context)
    if not context.pooler:
        return
    network.judge_pooler(v, host, verdict)
    ports.judge_pooler(v, host, verdict)
    package = host["package_versions"]["pgbouncer"]
    if package:
        verdict.notices += compatibility.pooler_warnings(package, v["pgbouncer_accept_advisories"])


def _groups(context: Context) -> Iterator[str]:
    for name in context.groups.get(GROUP, ()):
        for group, step in OTHERS.items():
            if name in context.groups.get(group, ()):
                yield f"{name} is in the groups {GROUP} and {group}: {step}"


def _follows(host: Listed, context: Context) -> Iterator[str]:
    """Yield why a host of the group has no cluster to follow, or how it differs from the cluster's members."""
    if not host.values.get("cluster_enabled"):
        yield (
            f"{host.name} is in the group {GROUP} and its cluster_enabled is false: a pooler without a server follows "
            f"a cluster; set cluster_enabled to true for all hosts, or remove the group {GROUP}"
        )
        return
    scope, known = host.values.get("cluster_name"), topology.scopes(context)
    if scope not in known:
        yield (
            f"cluster_name of {host.name}, a host of the group {GROUP}, is {scope}: expected the name of a cluster in "
            f"the inventory ({', '.join(known) or 'there is none: set cluster_enabled to true for all hosts'})"
        )
        return
    first = topology.members(context, str(scope))[0]
    for option in SAME:
        ours, theirs = host.values.get(option), first.values.get(option)
        if ours != theirs:
            yield f"{option} is {ours} on {host.name} and {theirs} on {first.name}: expected the value of the members"
