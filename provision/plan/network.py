"""Judge addresses before anything changes: listen addresses, allowed networks, certificate names. Pure.

The probe returns the host's `addresses` and, for each name or address to listen on, its addresses and whether a service
can bind to them (`listen`). Without a host both are missing, and only the form is judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from provision import addresses
from provision.plan import dns, hba
from provision.plan.context import Verdict
from provision.tuning import network_share

NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
WILDCARDS = ("*", addresses.ANY_IPV4, addresses.ANY_IPV6)


def judge(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Judge the addresses of a database host."""
    _services(v, host, verdict, ("postgresql", "pgbouncer"))
    limited = v["postgresql_network_connections"] and exposed(v["postgresql_listen_addresses"], host)
    if limited and not can_limit(host):
        verdict.warnings.append(
            "postgresql_network_connections: this host lacks systemd or CAP_NET_ADMIN (a container), so unfinished "
            f"logins from the network can take every connection of port {v['postgresql_port']}: set "
            "postgresql_listen_addresses: [localhost] and let applications use the pooler (pgbouncer_listen_addresses)"
        )
    _guard(v, host, verdict)
    if v["monitoring_exporters"] and v["monitoring_listen_address"] not in ("", *WILDCARDS):  # refused by their own
        verdict.refusals += listen_problems("monitoring_listen_address", [v["monitoring_listen_address"]], host)
    verdict.refusals += hba.problems(v["postgresql_extra_rules"], tls=v["tls_enabled"], major=v["postgresql_version"])
    users = v["postgresql_local_users"]
    if problem := hba.pattern_problem(users):
        verdict.refusals.append(
            f"postgresql_local_users is {users!r}: expected a regular expression, such as ^root$; {problem}"
        )


def judge_pooler(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Judge the addresses of a host with a pooler and no server."""
    _services(v, host, verdict, ("pgbouncer",))
    _guard(v, host, verdict)


def _services(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict, roles: Sequence[str]) -> None:
    """Judge the networks that each role admits, and the addresses where its service listens."""
    for variable in (f"{role}_allowed_networks" for role in roles):
        for network in v[variable]:
            problem = "" if network in hba.KEYWORDS else hba.network_problem(network)
            if problem:
                verdict.refusals.append(f"{variable} has {network!r}: expected a network; {problem}")
            elif hba.opens(network):
                verdict.warnings.append(
                    f"{variable} has {network}, which lets any address try passwords: list only the networks of the "
                    "applications"
                )
    for variable, port in ((f"{role}_listen_addresses", f"{role}_port") for role in roles):
        if not v[variable]:
            verdict.refusals.append(f"{variable} is empty: expected at least one address, for example localhost")
        verdict.refusals += listen_problems(variable, v[variable], host, port)
        verdict.notices += _notices(variable, v[variable], host)


def _guard(v: Mapping[str, Any], host: Mapping[str, Any], verdict: Verdict) -> None:
    """Judge the limits of the pooler's clients."""
    guarded = v["pgbouncer_address_clients"] and exposed(v["pgbouncer_listen_addresses"], host)
    if guarded and not can_limit(host):
        verdict.warnings.append(
            "pgbouncer_address_clients: this host lacks systemd or CAP_NET_ADMIN (a container), so unfinished logins "
            f"from one address can take every client of port {v['pgbouncer_port']}: admit only "
            "pgbouncer_allowed_networks in the firewall of the machine that runs the container"
        )
    if v["pgbouncer_address_clients"] > v["pgbouncer_max_clients"]:
        verdict.refusals.append(
            f"pgbouncer_address_clients is {v['pgbouncer_address_clients']}: expected at most pgbouncer_max_clients, "
            f"{v['pgbouncer_max_clients']}, or -1 for three quarters of it"
        )


def names(v: Mapping[str, Any], verdict: Verdict) -> None:
    """Refuse invalid certificate names; valid ones are converted when the plan is built."""
    for name in v["tls_extra_names"]:
        try:
            dns.certificate_name(name)
        except ValueError as error:
            # A URL may hold a password.
            seen = "" if "://" in name or "@" in name else f"{name!r}: "
            verdict.refusals.append(f"tls_extra_names has {seen}{error}; expected, for example, {dns.EXAMPLES}")


def listen_problems(variable: str, listen: Sequence[str], host: Mapping[str, Any], port: str = "") -> list[str]:
    """Return why a service could not listen on these addresses of this host."""
    return [
        f"{variable} has {each!r}: {problem}"
        for each in listen
        if each not in WILDCARDS and (problem := _problem(each, host, port))
    ]


def may_be_host(text: str) -> bool:
    """Return whether a text has the form of an address or a name that a host can resolve."""
    return bool(addresses.parsed(text) or (NAME.fullmatch(text) and not text.rpartition(".")[2].isdigit()))


def exposed(listen: Sequence[str], host: Mapping[str, Any]) -> bool:
    """Return whether a service with these listen addresses can be reached from another host."""
    behind = map(addresses.parsed, addresses.listened(listen, resolved(host)))
    return any(each is None or not each.is_loopback for each in behind)


def share(
    v: Mapping[str, Any], host: Mapping[str, Any], max_connections: int, pools: int
) -> network_share.NetworkShare:
    """Choose how many connections the network may hold; none is limited where the firewall has nothing to do."""
    if not exposed(v["postgresql_listen_addresses"], host) or not can_limit(host):
        return network_share.NetworkShare()
    return network_share.share(max_connections, pools, v["postgresql_network_connections"])


def pooler_share(v: Mapping[str, Any], host: Mapping[str, Any]) -> int:
    """Choose how many clients of the pooler one address may hold; 0 where the firewall has nothing to do."""
    if not exposed(v["pgbouncer_listen_addresses"], host) or not can_limit(host):
        return 0
    return network_share.of_pooler(v["pgbouncer_max_clients"], v["pgbouncer_address_clients"])


def can_limit(host: Mapping[str, Any]) -> bool:
    """Return whether a run can set the host's firewall rules, and systemd load them at boot."""
    return bool(host["systemd"] and host["network_administration"])


def resolved(host: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the addresses of each listen address or name that a service can bind to."""
    listen: Mapping[str, Mapping[str, bool]] = host.get("listen") or {}
    return {name: [each for each, binds in found.items() if binds] for name, found in listen.items()}


def _problem(text: str, host: Mapping[str, Any], port: str) -> str:
    literal = addresses.parsed(text)
    bare = text.strip().removeprefix("[").partition("]")[0].partition("%")[0].partition("/")[0]
    if bare.count(":") == 1:
        bare = bare.partition(":")[0]
    if not literal and bare != text and "://" not in text and (addresses.parsed(bare) or NAME.fullmatch(bare)):
        hint = f"; the port is {port}" if port and re.search(r":\d+$", text) and "/" not in text else ""
        return f"expected only an address of this host, such as {bare}{hint}"
    if not may_be_host(text):
        return "expected one address of this host, localhost, or a name that this host resolves"
    seen = (host.get("listen") or {}).get(text)
    if seen is None or any(seen.values()):
        return ""
    if not seen and not literal:
        return "this host does not resolve that name; write one of its addresses"
    has = ", ".join([*host["addresses"], addresses.LOOPBACK_IPV4, addresses.LOOPBACK_IPV6])
    return (
        f"this host does not have {', '.join(seen) or text}; it has {has}; for an address that moves between hosts, "
        "set net.ipv4.ip_nonlocal_bind and net.ipv6.ip_nonlocal_bind to 1"
    )


def _notices(variable: str, listen: Sequence[str], host: Mapping[str, Any]) -> list[str]:
    """Report duplicate addresses, addresses covered by a wildcard, and names that resolve to the loopback."""
    families = {4: {"*", addresses.ANY_IPV4}, 6: {"*", addresses.ANY_IPV6}}
    found, bound = [], resolved(host)
    seen: set[str] = set()
    for text in listen:
        address = addresses.parsed(text)
        wide = sorted(families[address.version] & set(listen)) if address and text not in WILDCARDS else []
        if wide:
            found.append(f"{variable}: {wide[0]} covers {text}; remove one of them")
        elif addresses.canonical(text) in seen:
            found.append(f"{variable} has {text} more than once; remove the duplicates")
        seen.add(addresses.canonical(text))
        behind = bound.get(text, [])
        named = not address and text not in (*WILDCARDS, addresses.LOCALHOST) and behind
        if named and all((each := addresses.parsed(one)) and each.is_loopback for one in behind):
            found.append(
                f"{variable}: {text} is {', '.join(behind)} on this host, an address that other hosts cannot "
                "reach; list one of the host's own"
            )
    return found
