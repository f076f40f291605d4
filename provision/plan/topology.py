"""Build and judge the section cluster of a plan from the variables of every host that takes part. Pure.

Members are the hosts of group `database` with `cluster_enabled` and the same `cluster_name`. etcd runs on the hosts of
group `dcs`; without that group on the first three members, and with a single host in it on two members and that host.
Hosts of group `pooler` run PgBouncer alone and follow the cluster that their `cluster_name` names (`poolers`).
Each host's plan is built from the inventory alone, so that a run with --limit gives the same files.

Sources: Patroni's documentation ("Dynamic Configuration Settings", "Replication modes"), etcd's ("Hardware
recommendations": three or five members).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from provision import addresses, compatibility
from provision.distributions import by_codename
from provision.plan import dns, fleet, names
from provision.plan.cluster import Cluster, DcsMember, Member, PoolerHost
from provision.plan.context import Context, Listed, Verdict, repository_kind
from provision.tuning import Tuning

PUBLISHED = "minion_secret of development cluster"  # of inventories/dev
PAIR = 2
QUORUM = 3
"""etcd members that survive the loss of one."""
MINIMUM_PASSPHRASE = 20
DCS_TOKEN = "provision"  # noqa: S105 - a name, no secret
TIMERS: Mapping[str, Mapping[str, int]] = {
    "fast": {"ttl": 20, "loop_wait": 2, "retry_timeout": 5, "primary_start_timeout": 0},
    "default": {"ttl": 30, "loop_wait": 10, "retry_timeout": 10, "primary_start_timeout": 300},
}
"""Seconds. `fast` has Patroni's least ttl; `default` is what Patroni does without a setting."""
SYNCHRONOUS = ("quorum", "on", "off")
QUORUM_SINCE = 4
"""First major of Patroni with quorum commit and the word primary in place of master."""
ROUTER_IDS = 255
EQUAL = ("max_connections", "max_worker_processes")
"""Settings that a replica must have at least as high as the primary (manual, "Hot Standby"); Patroni passes them from
its dynamic configuration and ignores the files."""
PRELOADED = ("shared_preload_libraries",)
NOTICED: Mapping[str, str] = {
    "wal_retrieve_retry_interval": "500ms",  # after a switchover commits wait for a replica; the default is 5 s
    "wal_receiver_timeout": "10s",  # a primary that vanished; the default is 60 s
    "wal_sender_timeout": "10s",
    "tcp_user_timeout": "10s",  # of sessions whose client or pooler vanished with its host
}
"""Settings with which members notice each other's loss; a reload applies them."""
SENDERS = 10
"""WAL senders and replication slots: replicas, backups, and a clone of each."""
SAME = ("postgresql_version", "postgresql_port", "plan_profile_name", "cluster_rest_port", "etcd_client_port",
        "etcd_peer_port", "backup_stanza", "database_owner", "database_name", "tls_enabled")  # fmt: skip
"""Options that all members must share."""
MOVING = ("balancer_address", "balancer_router_id")
"""Options that members with an address must share."""
OPTIONS = ("cluster_enabled", "cluster_name", "cluster_address", "pgbouncer_port", *MOVING, *SAME, *fleet.OPTIONS)
"""Options of every host that its peers read."""


def address(values: Mapping[str, Any], reached: str) -> str:
    """Return the address at which other members reach a host."""
    return str(values.get("cluster_address") or reached)


def members(context: Context, scope: str) -> list[Listed]:
    """Return the members of a cluster in the inventory's order."""
    return [
        each
        for each in context.listed
        if each.database and each.values.get("cluster_enabled") and each.values.get("cluster_name") == scope
    ]


def stores(context: Context, scope: str) -> list[Listed]:
    """Return the hosts that run etcd for a cluster."""
    group, ours = [each for each in context.listed if each.dcs], members(context, scope)
    if not group:
        return ours[:QUORUM]
    if len(group) == 1:
        return [*[each for each in ours if not each.dcs][: QUORUM - 1], *group]
    return group


def poolers(context: Context, scope: str) -> list[Listed]:
    """Return the hosts of group pooler that follow a cluster."""
    return [each for each in context.listed if each.pooler and each.values.get("cluster_name") == scope]


def scopes(context: Context) -> list[str]:
    """Return the names of the inventory's clusters."""
    clusters = [each for each in context.listed if each.database and each.values.get("cluster_enabled")]
    return sorted({str(each.values.get("cluster_name")) for each in clusters})


def scope_of(v: Mapping[str, Any], context: Context) -> str:
    """Return the cluster of a host; of one that only runs etcd, the first of the inventory."""
    if context.database or context.pooler:
        return str(v["cluster_name"])
    scopes = [str(each.values.get("cluster_name")) for each in context.listed if each.database]
    return scopes[0] if scopes else str(v["cluster_name"])


def takes_part(v: Mapping[str, Any], context: Context) -> bool:
    """Return whether a host is a member, runs etcd, or has a pooler alone."""
    if not v["cluster_enabled"]:
        return False
    return context.database or any(each.name == context.name and (each.dcs or each.pooler) for each in context.listed)


def build(
    v: Mapping[str, Any], probe: Mapping[str, Any], profile: Mapping[str, Any], context: Context, tuning: Tuning
) -> Cluster | None:
    """Make the section, None for a single host."""
    if not takes_part(v, context):
        return None
    scope = scope_of(v, context)
    ours, dcs = members(context, scope), stores(context, scope)
    owner = v["database_owner"]
    return Cluster(
        scope=scope,
        member=next((each.name for each in ours if each.name == context.name), ""),
        dcs_member=next((each.name for each in dcs if each.name == context.name), ""),
        members=tuple(
            Member(
                each.name,
                each.address,
                dns.certificate_names([each.address])[0],
                int(each.values["postgresql_port"]),
                int(each.values["pgbouncer_port"]),
            )
            for each in ours
        ),
        dcs=tuple(DcsMember(each.name, each.address, dns.certificate_names([each.address])[0]) for each in dcs),
        dcs_token=DCS_TOKEN if any(each.dcs for each in context.listed) else scope,
        rest_port=v["cluster_rest_port"],
        client_port=v["etcd_client_port"],
        peer_port=v["etcd_peer_port"],
        synchronous=synchronous(profile, probe),
        replication_role=names.of_owner(owner, "replica"),
        rewind_role=names.of_owner(owner, "rewind"),
        common_name=common_name(owner),
        dynamic=dynamic(profile, probe, tuning, len(ours), joined=fleet.group_of(v) != fleet.NONE),
        watchdog=bool(probe.get("watchdog")),
        pooler=context.name if context.pooler else "",
        poolers=tuple(
            PoolerHost(each.name, each.address, int(each.values["pgbouncer_port"])) for each in poolers(context, scope)
        ),
        scopes=tuple(scopes(context)),
        fleet=fleet.build(v, context),
    )


def common_name(owner: str) -> str:
    """Return the common name of the members' certificates."""
    return names.of_owner(owner, "member")


def patroni_major(probe: Mapping[str, Any]) -> int:
    """Return the major of Patroni that the host has, or will have from its distribution."""
    known = by_codename(probe["distribution_codename"])
    version = str((probe.get("package_versions") or {}).get("patroni") or (known.patroni if known else ""))
    return int(version.partition(".")[0] or QUORUM_SINCE)


def synchronous(profile: Mapping[str, Any], probe: Mapping[str, Any]) -> str:
    """Return the synchronous mode that this Patroni has: quorum becomes on before 4.0."""
    asked = str(profile["cluster"]["synchronous"])
    return "on" if asked == "quorum" and patroni_major(probe) < QUORUM_SINCE else asked


def dynamic(
    profile: Mapping[str, Any], probe: Mapping[str, Any], tuning: Tuning, count: int, *, joined: bool = False
) -> Mapping[str, Any]:
    """Return Patroni's dynamic configuration, as its REST API shows it, for a cluster of `count` members.

    In a group of a fleet (`joined`) Patroni writes the preloaded libraries, and would write citus alone.
    """
    mode = synchronous(profile, probe)
    timers = dict(TIMERS[profile["cluster"]["timers"]])
    if patroni_major(probe) < QUORUM_SINCE:
        timers["master_start_timeout"] = timers.pop("primary_start_timeout")
    texts = {each.name: each.text for each in tuning.settings}
    return {
        **timers,
        "failsafe_mode": True,
        "maximum_lag_on_failover": int(profile["cluster"]["maximum_lag_mb"]) * 1024 * 1024,
        "synchronous_mode": {"off": False, "on": True}.get(mode, mode),
        "synchronous_mode_strict": mode != "off" and bool(profile["cluster"]["strict"]) and count > 1,
        "synchronous_node_count": 1,
        "postgresql": {
            "use_pg_rewind": True,
            "use_slots": True,
            "parameters": {
                **{name: texts[name] for name in (*EQUAL, *(PRELOADED if joined else ())) if name in texts},
                "wal_level": texts.get("wal_level", "replica"),
                "max_wal_senders": texts.get("max_wal_senders", str(SENDERS + count)),
                "max_replication_slots": texts.get("max_replication_slots", str(SENDERS + count)),
                "max_prepared_transactions": texts.get("max_prepared_transactions", "0"),
                "max_locks_per_transaction": texts.get("max_locks_per_transaction", "64"),
                "wal_log_hints": "on",
                "hot_standby": "on",
                **{name: text for name, text in NOTICED.items() if name not in texts},
            },
        },
    }


def judge(
    v: Mapping[str, Any], host: Mapping[str, Any], profile: Mapping[str, Any], context: Context, verdict: Verdict
) -> None:
    """Refuse a cluster that could not keep its promises; warn about a weaker choice."""
    verdict.refusals += fleet.judge(v, host, context)
    if not takes_part(v, context):
        return
    scope = scope_of(v, context)
    ours = members(context, scope)
    known = host.get("plan_scope", "")
    if context.database and known not in ("", scope) and host["clusters"]:
        verdict.refusals.append(
            f"this host belongs to the cluster {known}, but the inventory names it {scope}: a running cluster can be "
            "neither renamed nor made a group of a fleet; restore cluster_name and citus_group, or first make it a "
            "single host"
        )
    verdict.refusals += [
        *_needs(v, profile),
        *_settings(profile),
        *_sizes(context, scope),
        *_addresses(host, context, scope),
        *_moving(v, host, context, scope),
    ]
    verdict.refusals += _differences(v, context, ours)
    installed = host.get("package_versions") or {}
    problem = compatibility.etcd_problem(installed.get("patroni", ""), installed.get("etcd-server", ""))
    verdict.refusals += [problem] if problem else []
    if context.database and v["backup_physical"] and repository_kind(v) == "local":
        verdict.refusals.append(
            "backup_physical is true and the repository is local: every member archives to one repository; set "
            "backup_repository_host or backup_s3 (backup_second_s3 is an addition to it)"
        )
    if verdict.refusals:
        return
    asked, mode = profile["cluster"]["synchronous"], synchronous(profile, host)
    if mode == "off":
        verdict.warnings.append(
            "cluster.synchronous of the profile is off: a failover loses the transactions that no replica has yet, "
            f"up to {profile['cluster']['maximum_lag_mb']} MB of WAL (docs/cluster.md)"
        )
    elif mode != asked:
        verdict.warnings.append(
            f"Patroni {patroni_major(host)} has no quorum commit: synchronous mode is on, so only the synchronous "
            "replica can take over"
        )
    if mode != "off" and profile["cluster"]["strict"] and len(ours) == PAIR:
        verdict.warnings.append(
            "the cluster has two members and cluster.strict of the profile is true: writes wait while either member is "
            "down; add a member, or set cluster.strict to false"
        )
    if context.database and not host.get("watchdog"):
        verdict.warnings.append(
            "the host has no /dev/watchdog: a primary whose Patroni hangs accepts writes until its kernel or its "
            "replicas stop it; load the module softdog, or enable the machine's watchdog"
        )


def _needs(v: Mapping[str, Any], profile: Mapping[str, Any]) -> list[str]:
    found = []
    if not v["tls_enabled"]:
        found.append(
            "cluster_enabled is true and tls_enabled is false: members use certificates; set tls_enabled to true"
        )
    length = len(v["cluster_passphrase"])
    if length < MINIMUM_PASSPHRASE:
        found.append(
            f"cluster_passphrase has {length} characters: expected at least {MINIMUM_PASSPHRASE}; "
            "provision secrets init INVENTORY generates it"
        )
    if v["cluster_passphrase"] == PUBLISHED and not profile["access"]["published_passwords"]:
        found.append("cluster_passphrase is the published one of development: set another one in the vault")
    return found


def _settings(profile: Mapping[str, Any]) -> list[str]:
    given = profile["cluster"]
    found = []
    if given["synchronous"] not in SYNCHRONOUS:
        found.append(
            f"cluster.synchronous of the profile is {given['synchronous']!r}: expected {', '.join(SYNCHRONOUS)}, "
            "in quotes"
        )
    if given["timers"] not in TIMERS:
        found.append(f"cluster.timers of the profile is {given['timers']!r}: expected {', '.join(TIMERS)}")
    return found


def _sizes(context: Context, scope: str) -> list[str]:
    ours, dcs = members(context, scope), stores(context, scope)
    scopes = {str(each.values.get("cluster_name")) for each in context.listed if each.database}
    group = [each.name for each in context.listed if each.dcs]
    if len(ours) < PAIR and fleet.group_of(ours[0].values if ours else {}) == fleet.NONE:
        return [
            f"cluster_enabled is true and the cluster {scope} has {len(ours)} member: expected two or more hosts in "
            "the group database with cluster_enabled: true and the same cluster_name"
        ]
    if not group and len(scopes) > 1:
        return [
            f"the inventory has {len(scopes)} clusters ({', '.join(sorted(scopes))}) and no group dcs: put three hosts "
            "into the group dcs; their etcd serves all clusters"
        ]
    if len(dcs) >= QUORUM and len(dcs) % 2:
        return []
    seen = ", ".join(each.name for each in dcs)
    if not group:
        return [
            f"the cluster {scope} has two hosts: etcd needs a third one to decide which of them is primary when "
            "they lose contact; put one more host into the group dcs (docs/cluster.md)"
        ]
    return [
        f"etcd would run on {len(dcs)} hosts ({seen}): expected 3 or 5 hosts in the group dcs, or one "
        "beside two members"
    ]


def _addresses(host: Mapping[str, Any], context: Context, scope: str) -> list[str]:
    found = []
    every = {each.name: each for each in [*members(context, scope), *stores(context, scope), *poolers(context, scope)]}
    for each in every.values():
        parsed = addresses.parsed(each.address)
        if parsed is None:
            found.append(
                f"cluster_address of {each.name} is {each.address!r}: expected the IP address at which the other "
                "members reach it"
            )
        elif parsed.is_loopback or parsed.is_unspecified:
            found.append(
                f"cluster_address of {each.name} is {each.address}: expected an address that other hosts reach"
            )
    own = every.get(context.name)
    has = [addresses.canonical(each) for each in host.get("addresses") or ()]
    if own and has and addresses.parsed(own.address) and addresses.canonical(own.address) not in has:
        found.append(f"cluster_address is {own.address}, which this host does not have; it has {', '.join(has)}")
    seen: dict[str, str] = {}
    for each in every.values():
        other = seen.setdefault(addresses.canonical(each.address), each.name)
        if other != each.name:
            found.append(f"cluster_address of {each.name} is {each.address}, as is that of {other}")
    return found


def _moving(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, scope: str) -> list[str]:
    """Judge the address that keepalived moves between the members."""
    text = v["balancer_address"]
    if not text or not context.database:
        return []
    if not v["balancer_enabled"]:
        return ["balancer_address is set and balancer_enabled is false: set balancer_enabled to true"]
    if not 1 <= v["balancer_router_id"] <= ROUTER_IDS:
        return [f"balancer_router_id is {v['balancer_router_id']}: expected 1 to {ROUTER_IDS}"]
    try:
        moving = ipaddress.IPv4Interface(text if "/" in text else "")
    except ValueError:
        return [f"balancer_address is {text!r}: expected an IPv4 address with its prefix length, such as 10.0.0.100/24"]
    found = [
        f"balancer_address is {text}, which is the address of {each.name}: choose an address that no host has"
        for each in members(context, scope)
        if each.address == str(moving.ip)
    ]
    own = address(v, context.address)
    parsed = addresses.parsed(own)
    if parsed is not None and parsed not in moving.network:
        found.append(
            f"balancer_address is {text} and this host's cluster_address is {own}: expected an address in one network; "
            "keepalived moves it between hosts of one network"
        )
    for option in MOVING:
        found += [
            f"{option} is {v[option]} here and {each.values.get(option)} on {each.name}: expected one value"
            for each in members(context, scope)
            if each.values.get("balancer_address") and each.values.get(option) != v[option]
        ]
    if not found and host.get("interfaces") and own not in host["interfaces"]:
        found.append(
            f"balancer_address is {text} and no interface of this host has {own} as its first address: set "
            "cluster_address to the first address of an interface"
        )
    return found


def _differences(v: Mapping[str, Any], context: Context, ours: Sequence[Listed]) -> list[str]:
    """Refuse members that differ in what must be equal; each host compares itself with the others."""
    if not context.database:
        return []
    found = []
    for option in SAME:
        others = {each.name: each.values.get(option) for each in ours if each.values.get(option) != v[option]}
        if others:
            listed = ", ".join(f"{value} on {name}" for name, value in others.items())
            found.append(f"{option} is {v[option]} here and {listed}: expected one value on all members")
    return found
