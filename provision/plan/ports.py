"""Judge the TCP ports of a host's services: range, duplicates, and current listeners. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from provision import addresses
from provision.plan import network
from provision.plan.context import Verdict

RANGE = (1024, 65535)
"""No service here has the capability to bind a lower port."""
LOOPBACKS = (*addresses.LOOPBACKS, addresses.LOCALHOST)
NODE_EXPORTER, POSTGRES_EXPORTER = "prometheus-node-exporter.service", "prometheus-postgres-exporter.service"
POOLER = "pgbouncer.service"
BALANCER = "haproxy.service"
PATRONI, ETCD = "patroni.service", "etcd.service"
MANIFESTS = {PATRONI: "patroni", ETCD: "etcd"}
"""Units that a host without our database may have had before: ours once this role has placed its files."""


@dataclass(frozen=True)
class Bound:
    """A port that a unit will listen on; `unit` is "" for the server, whose unit depends on its major."""

    variable: str
    port: int
    addresses: tuple[str, ...]
    unit: str


def bound(v: Mapping[str, Any]) -> list[Bound]:
    """Return every port that the services of a database host will bind."""
    found = [
        Bound("postgresql_port", v["postgresql_port"], tuple(v["postgresql_listen_addresses"]), ""),
        Bound("pgbouncer_port", v["pgbouncer_port"], tuple(v["pgbouncer_listen_addresses"]), POOLER),
    ]
    if v["monitoring_exporters"]:
        where = (v["monitoring_listen_address"],)
        found.append(Bound("monitoring_node_port", v["monitoring_node_port"], where, NODE_EXPORTER))
        found.append(Bound("monitoring_postgres_port", v["monitoring_postgres_port"], where, POSTGRES_EXPORTER))
    if v["cluster_enabled"]:
        where = (v["cluster_address"] or "*",)
        found.append(Bound("cluster_rest_port", v["cluster_rest_port"], where, PATRONI))
        found.append(Bound("etcd_client_port", v["etcd_client_port"], where, ETCD))
        found.append(Bound("etcd_peer_port", v["etcd_peer_port"], where, ETCD))
        if v["balancer_enabled"]:
            listen = tuple(v["postgresql_listen_addresses"])
            found.append(Bound("balancer_write_port", v["balancer_write_port"], listen, BALANCER))
            found.append(Bound("balancer_read_port", v["balancer_read_port"], listen, BALANCER))
            loopback = (addresses.LOOPBACK_IPV4,)
            found.append(Bound("balancer_statistics_port", v["balancer_statistics_port"], loopback, BALANCER))
    return found


def _serving(v: Mapping[str, Any], host: Mapping[str, Any]) -> int:
    """Return the port of the server that runs: of the major that is wanted, else of another one; else the wanted port.

    After an upgrade by logical replication the old server runs, too, with a port of its own.
    """
    running = [each for each in host["clusters"] if each["running_port"]]
    running.sort(key=lambda each: each["major"] != str(v["postgresql_version"]))
    return int(running[0]["running_port"]) if running else int(v["postgresql_port"])


def judge(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse ports that cannot be bound; note where the server serves now."""
    ours = bound(v)
    verdict.refusals += _out_of_range(ours)
    for first, second in combinations(ours, 2):
        if first.port == second.port:
            verdict.refusals.append(f"{second.variable} is {second.port}, as is {first.variable}: choose another port")
    port = v["postgresql_port"]
    known = host["ours"] or verdict.adopting
    serving = _serving(v, host) if known else port
    verdict.serving_port = serving
    if serving != port and not v["postgresql_restart_allowed"]:
        verdict.refusals.append(
            f"postgresql_port is {port}, the server listens on {serving}: a new port needs a restart, which "
            "postgresql_restart_allowed forbids; run again with -e postgresql_restart_allowed=true when connections "
            "may be cut"
        )
    if v["pgbouncer_port"] == serving != port:
        verdict.refusals.append(f"pgbouncer_port is {serving}, where the server listens now: choose another port")
    verdict.refusals += _held(ours, host)


def judge_pooler(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse a port that the pooler of a host without a server cannot bind."""
    ours = [each for each in bound(v) if each.unit == POOLER]
    verdict.refusals += [*_out_of_range(ours), *_held(ours, host)]


def _out_of_range(ours: Iterable[Bound]) -> list[str]:
    return [
        f"{each.variable} is {each.port}: expected {RANGE[0]} to {RANGE[1]}"
        for each in ours
        if not RANGE[0] <= each.port <= RANGE[1]
    ]


def _held(ours: Iterable[Bound], host: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each port that another process holds."""
    resolved = network.resolved(host)
    return [
        _taken(row, each)
        for row in host["listeners"]
        for each in ours
        if each.port == row["port"]
        and _overlap(row["address"], addresses.listened(each.addresses, resolved))
        and not _own(row, each, host)
    ]


def _own(row: Mapping[str, Any], each: Bound, host: Mapping[str, Any]) -> bool:
    """Return whether a listener is the service that this run manages.

    The server is recognized by its port, not its pid: a container may hide the processes of other users, and a cluster
    that is not ours is refused by name. The other services are recognized by their unit or, where the host shows
    neither the process nor its unit, by the port that the last run recorded.
    """
    clusters = {cluster["running_port"] for cluster in host["clusters"]}
    if not each.unit:
        return row["port"] in clusters
    if row["port"] in clusters:
        return False
    units = [row["unit"]] if row["unit"] else row["units"]
    if host["systemd"] and units:  # else the unit is the container's, on its own host
        ours = host["ours"] or (each.unit == POOLER and "pgbouncer" in host["manifests"])  # of a host without a server
        placed = MANIFESTS[each.unit] in host["manifests"] if each.unit in MANIFESTS else ours
        return each.unit in units and bool(placed)
    return row["port"] in {host["pooler_port"], *host["exporter_ports"], *host["cluster_ports"]}


def _overlap(theirs: str, ours: Iterable[str]) -> bool:
    """Return whether two sockets of one port meet; a name that the host does not resolve may be any address.

    A socket on :: takes IPv4 too unless it is IPv6 only, as those of PostgreSQL and PgBouncer are.
    """
    their = ipaddress.ip_address(theirs)
    their = getattr(their, "ipv4_mapped", None) or their
    for text in ours:
        own = addresses.parsed(text)
        if own in (None, their) or theirs == addresses.ANY_IPV6:
            return True
        if own and own.version == their.version and (own.is_unspecified or their.is_unspecified):
            return True
    return False


def _taken(row: Mapping[str, Any], each: Bound) -> str:
    if not row["pid"]:
        holder, stop = "a process that the host does not show", "stop it"
    else:
        unit = row["unit"]
        holder = f"process {row['pid']} ({row['command']}{f', {unit}' if unit else ''})"
        stop = f"stop it (systemctl disable --now {unit})" if unit.endswith(".service") else "stop it"
    if row["unit"] == each.unit and each.unit:
        # Our unit, configured by the user: another port for us would not help, because there is one unit.
        other = "monitoring_exporters to false" if each.variable.startswith("monitoring_") else ""
        return (
            f"port {row['port']} is taken by {holder}, which this host runs with other settings: {stop}"
            f"{f', or set {other} to keep it' if other else ''}"
        )
    return f"port {row['port']} is taken by {holder}: {stop}, or set {each.variable} to a free port"
