"""The limits of connections from the network, as the kernel has them. Runs nft, changes nothing."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

from provision.checks.placed import ask
from provision.checks.registry import Row, check
from provision.plan.schema import Plan

UNIT = "provision-firewall.service"
TABLE = ("inet", "provision")


@check(
    "firewall",
    area="host",
    expected="the nftables table inet provision with the limits of the plan",
    why="unfinished logins from the network can take every connection of the server or the pooler",
    fix=f"systemctl restart {UNIT}",
    safe=True,
)
def limits(plan: Plan) -> Iterator[Row]:
    """Report missing or different limits, as after `nft flush ruleset`."""
    guarded = expected(plan)
    if not guarded:
        return
    seen = ask("nft", "--json", "list", "table", *TABLE)
    if not seen:
        ports = " and ".join(str(port) for port, _ in guarded.values())
        yield f"no table {' '.join(TABLE)}: connections to port {ports} are not limited"
        return
    jumps = entries(seen)
    for chain, (port, numbers) in guarded.items():
        if (found := counts(seen, chain)) != numbers:
            yield f"port {port}: limits {found or 'none'} instead of {numbers}"
        elif jumps.get(chain) != port:
            yield f"the limits of chain {chain} apply to port {jumps.get(chain, 'none')}, not to {port}"
    if "pgbouncer" in guarded and (admitted := networks(seen)) != admitting(plan):
        yield f"port {plan.pooler.port} admits {', '.join(admitted) or 'no network'}"


def expected(plan: Plan) -> dict[str, tuple[int, list[int]]]:
    """Return the port of each chain with limits, and the limits in order: for each address by family, for all. Pure."""
    server, pooler, found = plan.server, plan.pooler, {}
    if server.network_connections:
        found["postgresql"] = server.port, [*[server.address_connections] * 2, server.network_connections]
    if pooler.address_clients:
        rate = [pooler.address_rate, pooler.address_clients] * 2 if pooler.address_rate else []
        found["clients"] = pooler.port, [*rate, *[pooler.address_clients] * 2, pooler.max_clients]
    return found


def admitting(plan: Plan) -> list[str]:
    """Return the networks that may reach the pooler, as nft writes addresses, sorted. Pure."""
    return sorted({str(ipaddress.ip_network(each)) for each in plan.pooler.remote_networks})


def counts(listing: str, chain: str = "postgresql") -> list[int]:
    """Return the limits of the rules of a chain, in order; a rate is followed by its burst. Pure."""
    return list(_numbers(_rules(listing).get(chain, [])))


def entries(listing: str) -> dict[str, int]:
    """Return the ports whose connections reach a chain with limits, by chain. Pure."""
    rules = _rules(listing)
    ports = {jump: port for jump, port in map(_jump, rules.get("input", [])) if port}
    if "pgbouncer" in ports:
        port = ports.pop("pgbouncer")
        ports |= {jump: port for jump, _ in map(_jump, rules.get("pgbouncer", [])) if jump}
    return ports


def networks(listing: str) -> list[str]:
    """Return the networks whose connections reach the pooler, sorted. Pure."""
    found = set()
    for rule in _rules(listing).get("pgbouncer", []):
        for each in rule:
            right = each.get("match", {}).get("right")
            if isinstance(right, dict) and "prefix" in right:
                found.add(f"{right['prefix']['addr']}/{right['prefix']['len']}")
            elif isinstance(right, str) and right != "tcp":
                found.add(f"{right}/{128 if ':' in right else 32}")
    return sorted(found)


def _numbers(part: Any) -> Iterator[int]:
    """Yield the limits in a part of a listing, at any depth: a statement may be within one of a set."""
    if isinstance(part, dict):
        if "ct count" in part:
            yield part["ct count"]["val"]
        if "limit" in part:
            yield from (part["limit"]["rate"], part["limit"].get("burst", 0))
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from _numbers(each)


def _jump(rule: list[dict[str, Any]]) -> tuple[str, int]:
    """Return the chain to which a rule jumps, and the port that it matches; "" and 0 for none."""
    target, port = "", 0
    for each in rule:
        for word in ("jump", "goto"):
            target = each[word]["target"] if word in each else target
        match = each.get("match", {})
        port = match["right"] if match.get("left", {}).get("payload", {}).get("field") == "dport" else port
    return target, port


def _rules(listing: str) -> dict[str, list[list[dict[str, Any]]]]:
    """Return the expressions of each rule, by chain."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    try:
        for entry in json.loads(listing)["nftables"]:
            if "rule" in entry:
                found.setdefault(entry["rule"]["chain"], []).append(entry["rule"]["expr"])
    except (ValueError, KeyError, TypeError):
        return {}
    return found
