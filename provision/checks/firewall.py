"""The limit of connections from the network to the server's port, as the kernel has it. Runs nft, changes nothing."""

from __future__ import annotations

import json
import re
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
    why="unfinished logins from the network can take every connection of the server, the superuser's too",
    fix=f"systemctl restart {UNIT}",
    safe=True,
)
def limits(plan: Plan) -> Iterator[Row]:
    """Report missing or different limits, as after `nft flush ruleset`."""
    server = plan.server
    if not server.network_connections:
        return
    seen = ask("nft", "--json", "list", "table", *TABLE)
    if not seen:
        yield f"no table {' '.join(TABLE)}: connections to port {server.port} are not limited"
    elif (found := counts(seen)) != (expected := [*[server.address_connections] * 2, server.network_connections]):
        yield f"limits {found or 'none'} instead of {expected}"
    elif server.port not in ports(seen):
        yield f"the limits apply to port {', '.join(map(str, ports(seen)))}, not to {server.port}"


def counts(listing: str) -> list[int]:
    """Return the limits of the rules of chain postgresql, in order: one IPv4, one IPv6, all addresses. Pure."""
    return [int(each) for each in re.findall(r'"ct count": \{"val": (\d+)', _rules(listing, "postgresql"))]


def ports(listing: str) -> list[int]:
    """Return the ports whose connections jump to chain postgresql. Pure."""
    return [int(each) for each in re.findall(r'"field": "dport"\}\}, "right": (\d+)', _rules(listing, "input"))]


def _rules(listing: str, chain: str) -> str:
    try:
        entries: list[dict[str, Any]] = json.loads(listing)["nftables"]
    except (ValueError, KeyError):
        return ""
    return json.dumps([each["rule"]["expr"] for each in entries if each.get("rule", {}).get("chain") == chain])
