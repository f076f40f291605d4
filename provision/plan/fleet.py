"""Judge and build what a fleet adds to its hosts: several clusters, its groups, that Citus joins. Pure.

`citus_group` gives a host its group: 0 is the coordinator, 1 and more are workers, which hold tenants. Each group is a
cluster of its own, named NAME/GROUP, which is also where Patroni keeps it in etcd; so what holds for a cluster holds
for a group. `applied` and `scoped` give a host, and the others, the options that follow from its group.

Sources: Patroni's documentation ("Citus support"), Citus's ("Configuration Reference", "Schema-based sharding").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from provision import compatibility
from provision.plan.cluster import COORDINATOR, Fleet, Node
from provision.plan.context import Context, Listed, repository_kind

NONE = -1
"""citus_group of a host outside fleets."""
EXTENSION = "citus"
FILE = "/etc/apt/sources.list.d/provision-citus.sources"
MAPS_TO_ALL_SINCE = 16
"""The first major whose pg_ident.conf can map a certificate to every role: nodes act as the role of the session."""
PREPARED = 200
"""max_prepared_transactions, if the user sets none: a change of several nodes prepares one on each (2PC)."""
SETTINGS: Mapping[str, tuple[Any, str]] = {
    "wal_level": ("logical", "a tenant moves by logical replication"),
    "max_prepared_transactions": (PREPARED, "nodes commit together by two-phase commit"),
    "auto_explain.log_analyze": (False, "INSERT ... SELECT fails with it on a node with Citus"),
    "citus.enable_unsafe_triggers": (True, "tables with triggers can be distributed: those of a tenant share one node"),
    "citus.enable_schema_based_sharding": (False, "a tenant is migrated first, then distributed"),
    "citus.node_connection_timeout": ("5s", "a node that is down is noticed; the default is 30 s"),
    # Citus's filter for other programs breaks outer joins of pg_class, such as that of \d.
    "citus.show_shards_for_app_name_prefixes": ("psql", "psql shows shards, and its \\d works"),
    "citus.stat_tenants_track": ("all", "load by tenant, for provision fleet rebalance --by load"),
}
"""Settings of every node, with the reason; FIXED must keep them."""
FIXED = ("wal_level", "auto_explain.log_analyze")
SAME = ("postgresql_version", "database_owner", "database_name", "tls_enabled", "pgvector_version",
        "pgvector_install_method")  # fmt: skip
"""Options that all hosts of a fleet must share."""
OPTIONS = ("citus_group", "backup_stanza", *SAME)
"""Options of every host that the others read."""


def group_of(values: Mapping[str, Any]) -> int:
    """Return a host's group, NONE outside fleets."""
    return int(values.get("citus_group", NONE))


def scoped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a host's options with the names of its group: of its cluster, and of a worker's backups."""
    group = group_of(values)
    if group == NONE:
        return dict(values)
    names = {"cluster_name": f"{values['cluster_name']}/{group}"}
    if group and "backup_stanza" in values:
        names["backup_stanza"] = f"{values['backup_stanza']}-{group}"
    return {**values, **names}


def context(given: Context) -> Context:
    """Return the context with the options of all hosts as `scoped` makes them."""
    peers = {each.name: scoped(each.values) for each in given.listed}
    return replace(
        given,
        listed=tuple(replace(each, values=peers[each.name]) for each in given.listed),
        peers=tuple(
            replace(each, stanza=str(peers.get(each.name, {}).get("backup_stanza", each.stanza)))
            for each in given.peers
        ),
    )


def applied(v: Mapping[str, Any], certificate: Mapping[str, str]) -> dict[str, Any]:
    """Return the variables of a host of a fleet: its names, the extension, and the settings that Citus needs.

    `certificate` has the files ca, certificate and key with which nodes log in to each other.
    """
    found = scoped(v)
    if group_of(v) == NONE:
        return found
    extensions = [*(each for each in v["database_extensions"] if each != EXTENSION), EXTENSION]
    ours = {name: {"value": value, "reason": reason} for name, (value, reason) in SETTINGS.items()}
    ours["citus.node_conninfo"] = {"value": _conninfo(v, certificate), "reason": "nodes verify each other"}
    found |= {"database_extensions": extensions, "postgresql_settings": {**ours, **v["postgresql_settings"]}}
    return {**found, "backup_logical": False}  # it would not be one snapshot of several servers


def _conninfo(v: Mapping[str, Any], certificate: Mapping[str, str]) -> str:
    mode = "verify-ca" if v["tls_provided_certificate"] else "verify-full"
    return (
        f"sslmode={mode} sslrootcert={certificate['ca']} sslcert={certificate['certificate']} "
        f"sslkey={certificate['key']} tcp_user_timeout=10000"
    )


def nodes(given: Context, name: str) -> list[tuple[int, Listed]]:
    """Return the database hosts of a fleet with their groups, by group, in the inventory's order."""
    found = [
        (group_of(each.values), each)
        for each in given.listed
        if each.database and group_of(each.values) != NONE and name_of(each.values) == name
    ]
    return sorted(found, key=lambda each: each[0])


def name_of(values: Mapping[str, Any]) -> str:
    """Return the name of a fleet from a host's scoped options."""
    return str(values["cluster_name"]).rpartition("/")[0]


def build(v: Mapping[str, Any], given: Context) -> Fleet | None:
    """Make the part of the section cluster, None for a host outside fleets. `v` is as `applied` makes it."""
    if group_of(v) == NONE:
        return None
    found = nodes(given, name_of(v))
    return Fleet(
        name_of(v),
        group_of(v),
        tuple(Node(each.name, group, each.address, int(each.values["postgresql_port"])) for group, each in found),
    )


def judge(v: Mapping[str, Any], host: Mapping[str, Any], given: Context) -> Iterable[str]:
    """Yield why a host cannot be part of a fleet. `v` is as `applied` makes it."""
    group = group_of(v)
    if group == NONE:
        return
    if group < NONE:
        yield f"citus_group is {group}: expected 0 for the coordinator, 1 or more for a worker, -1 outside a fleet"
        return
    if not v["cluster_enabled"]:
        yield "citus_group is set and cluster_enabled is false: each group is a cluster; set cluster_enabled to true"
        return
    major = v["postgresql_version"]
    if major < MAPS_TO_ALL_SINCE:
        yield (
            f"citus_group is set and postgresql_version is {major}: expected {MAPS_TO_ALL_SINCE} or newer, whose "
            "pg_ident.conf can map the certificate of a node to every role"
        )
    elif problem := compatibility.citus_problem(major):
        yield problem
    for name in FIXED:
        value = v["postgresql_settings"].get(name)
        if isinstance(value, Mapping):
            value = value.get("value")
        expected = "off" if SETTINGS[name][0] is False else str(SETTINGS[name][0])
        if value is not SETTINGS[name][0] and str(value) != expected:
            yield f"postgresql_settings.{name} is {value}: expected {expected}, because {SETTINGS[name][1]}"
    prepared = v["postgresql_settings"]["max_prepared_transactions"]
    if str(prepared.get("value") if isinstance(prepared, Mapping) else prepared) == "0":
        yield "postgresql_settings.max_prepared_transactions is 0: expected more, because nodes prepare transactions"
    source = v["citus_source"]
    if v["postgresql_repository"] == "bundle":
        yield "postgresql_repository is bundle, which has no package of Citus: set it to pgdg, mirror or distribution"
    elif (source or v["postgresql_repository"] != "mirror") and not (source.get("uri") and source.get("key")):
        yield "citus_source is incomplete: set uri and key of a package source that has Citus"
    yield from _shared_source(source, host)
    yield from _groups(v, given)


def _shared_source(source: Mapping[str, Any], host: Mapping[str, Any]) -> Iterable[str]:
    """Yield a refusal if another source of the host has the host name of Citus's, to which a pin applies as a whole."""
    name = urlsplit(str(source.get("uri", ""))).hostname
    for row in host.get("sources") or () if name else ():
        if urlsplit(str(row["uri"])).hostname == name and row["file"] != FILE:
            yield (
                f"citus_source.uri is on {name}, as is {row['uri']} of {row['file']}: apt would take nothing but Citus "
                "from that host; serve Citus under another host name"
            )
            return


def _groups(v: Mapping[str, Any], given: Context) -> Iterable[str]:
    found = nodes(given, name_of(v))
    groups = sorted({group for group, _ in found})
    if groups[0] != COORDINATOR:
        yield f"the fleet {name_of(v)} has the groups {', '.join(map(str, groups))}: expected a host of group 0"
    elif len(groups) == 1:
        yield (
            f"the fleet {name_of(v)} has group 0 alone: expected a worker; set citus_group: 1 for a host, or remove "
            "citus_group"
        )
    for option in SAME:
        others = {each.name: each.values.get(option) for _, each in found if each.values.get(option) != v[option]}
        if others:
            listed = ", ".join(f"{value} on {name}" for name, value in others.items())
            yield f"{option} is {v[option]} here and {listed}: expected one value on all hosts of the fleet"
    if v["backup_physical"] and repository_kind(v) == "local":
        yield (
            "backup_physical is true and the repository is local: a fleet is restored as a whole; set "
            "backup_repository_host or backup_s3"
        )
