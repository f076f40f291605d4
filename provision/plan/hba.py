"""The access rules of a server (pg_hba.conf), in a fixed order. Pure.

The first matching rule decides, so specific rules and rejections come before general rules: the superuser; named
logins over the socket; the socket with a password; no superuser over TCP; logins by certificate; the user's own rules;
this host; no TCP without TLS; the allowed networks. A connection that matches no rule is rejected.
Source: the manual, "The pg_hba.conf File".
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provision import addresses, quoting
from provision.plan import names, schema

METHODS = ("scram-sha-256", "cert", "peer", "reject")
"""Methods allowed in a user's own rule. trust and ident admit anyone; password and md5 expose passwords."""
KEYWORDS = ("samenet", "samehost")
MAP = re.compile(r"[A-Za-z0-9_-]{1,63}")
_SYSTEM_USER = re.compile(r"[a-z_][a-z0-9_-]*")
_ALTERNATIVES = re.compile(r"\^\(?([a-z_][a-z0-9_-]*(?:\|[a-z_][a-z0-9_-]*)*)\)?\$")
"""A pattern that lists whole names, such as ^(root|postgres)$."""
PATTERNS_SINCE = 16
"""The first major that reads /pattern as a database or a role."""
MEMBERS, NODES = "members", "nodes"
"""User name maps of the certificates of a cluster's members, and of a fleet's nodes, which act as any role."""
REPLICATION = "replication"
"""Word for physical replication in the column of databases."""
OPENS = ("0.0.0.0/0", "::/0", "all")


@dataclass(frozen=True)
class Rule:
    """One line: kind is local, host, hostssl or hostnossl; several names are joined by commas."""

    kind: str
    database: str
    user: str
    address: str
    method: str

    def __str__(self) -> str:
        """Write it in columns."""
        return f"{self.kind:<9} {self.database:<15} {self.user:<19} {self.address:<23} {self.method}".rstrip()


def rules(
    *,
    tls: bool,
    networks: Iterable[str],
    socket_logins: Iterable[Mapping[str, str]] = (),
    certificate_logins: Iterable[Mapping[str, Any]] = (),
    members: Iterable[str] = (),
    member_logins: Mapping[str, str] | None = None,
    poolers: Iterable[str] = (),
    nodes: Iterable[str] = (),
    database: str = "",
    extra: Iterable[Mapping[str, Any]] = (),
) -> list[Rule]:
    """Return all rules in order. With `tls`, connections from outside require TLS; without it, none does.

    socket_logins: role, database (peer, by a map of the role's name). certificate_logins: role, from (only with `tls`).
    members, poolers: addresses of the other members of a cluster, and of hosts that have a pooler alone; both open
    sessions for clients. nodes: addresses of a fleet's other groups, whose servers act as any role in `database`.
    extra: users, databases, from (none is the socket), method, map.
    """
    kind = "hostssl" if tls else "host"
    found = [Rule("local", "all", "postgres", "", "peer")]
    found += [
        Rule(
            "local",
            quoting.hba(each["database"]),
            quoting.hba(each["role"]),
            "",
            f"peer map={quoting.hba(each['role'])}",
        )
        for each in socket_logins
    ]
    found += [
        Rule("local", database, quoting.hba(role), "", f"peer map={quoting.hba(role)}")
        for role, database in (member_logins or {}).items()
        if database == REPLICATION
    ]
    own = [_own(each, kind) for each in extra]
    found += [rule for group in own for rule in group if rule.kind == "local"]
    found += [
        Rule("local", "all", "all", "", "scram-sha-256"),
        *_between(kind, quoting.hba(database), list(nodes), members),
        Rule("host", "all", "postgres", "all", "reject"),
    ]
    for each in certificate_logins if tls else ():
        role = quoting.hba(each["role"])
        found += [Rule(kind, "all", role, address, "cert") for address in each["from"]]
        found.append(Rule("host", "all", role, "all", "reject"))
    for role, database in (member_logins or {}).items():
        found += [Rule(kind, database, quoting.hba(role), each, f"cert map={MEMBERS}") for each in members]
        found.append(
            Rule("host", "all" if database != REPLICATION else "all,replication", quoting.hba(role), "all", "reject")
        )
    found += [rule for group in own for rule in group if rule.kind != "local"]
    found += [Rule("host", "all", "all", address, "scram-sha-256") for address in addresses.LOOPBACK_NETWORKS]
    found += [Rule(kind, "all", "all", each, "scram-sha-256") for each in (*members, *poolers)]
    found += [Rule("hostnossl", "all", "all", "all", "reject")] if tls else []
    return found + [Rule(kind, "all", "all", network, "scram-sha-256") for network in networks]


def _between(kind: str, database: str, nodes: Sequence[str], members: Iterable[str]) -> list[Rule]:
    """Return the rules of a fleet's nodes. A node connects to itself too, as the superuser, by any of its addresses."""
    own = [*addresses.LOOPBACK_NETWORKS, *members] if nodes else []
    return [
        *(Rule(kind, database, "postgres", each, f"cert map={NODES}") for each in own),
        *(Rule(kind, database, "all", each, f"cert map={NODES}") for each in nodes),
    ]


def _own(rule: Mapping[str, Any], kind: str) -> list[Rule]:
    databases = ",".join(map(quoting.hba, rule.get("databases") or ["all"]))
    users, method = ",".join(map(quoting.hba, rule["users"])), str(rule["method"])
    if rule.get("map"):
        method += f" map={rule['map']}"
    if not rule.get("from"):
        return [Rule("local", databases, users, "", method)]
    # A rejection applies with and without TLS; a rule that admits requires TLS where TLS is enabled.
    return [Rule("host" if method == "reject" else kind, databases, users, address, method) for address in rule["from"]]


def problems(extra: Sequence[Mapping[str, Any]], *, tls: bool, major: int = PATTERNS_SINCE) -> list[str]:
    """Return the problems of the user's own rules, each with its place in the list."""
    found = []
    for number, rule in enumerate(extra, 1):
        found += [f"postgresql_extra_rules, rule {number}: {problem}" for problem in _problems(rule, tls, major)]
    return found


def _problems(rule: Mapping[str, Any], tls: bool, major: int) -> list[str]:
    method, addresses = rule.get("method"), rule.get("from") or []
    found = []
    if not rule.get("users"):
        found.append("users is missing: name the roles, or all")
    for name in [*(rule.get("users") or []), *(rule.get("databases") or [])]:
        if name.startswith("/") and major < PATTERNS_SINCE:
            found.append(f"{name!r}: patterns need PostgreSQL {PATTERNS_SINCE}, not {major}: list the names instead")
        elif why := _name(name):
            found.append(f"{name!r} is not the name of a role or database, nor +role, all, or a /pattern: {why}")
    found += [
        f"{address!r}: not a network; {problem}"
        for address in addresses
        if address not in (*KEYWORDS, *OPENS) and (problem := network_problem(address))
    ]
    if method not in METHODS:
        found.append(f"method {method!r}: allowed are {', '.join(METHODS)}")
    if method == "cert" and not (tls and addresses):
        found.append("cert needs TLS (tls_enabled) and from: certificates work over TCP only")
    if method == "peer" and addresses:
        found.append("peer works over the socket only: omit from")
    if method != "reject" and "postgres" in (rule.get("users") or []) and addresses:
        found.append("the superuser may connect over the socket only")
    if rule.get("map") and (method not in ("cert", "peer") or not MAP.fullmatch(str(rule["map"]))):
        found.append("map is for cert and peer, and may contain letters, digits, - and _")
    return found


def pattern_problem(text: str) -> str:
    """Return why a text is no regular expression, "" where it is one. Only the server judges its own escapes."""
    if not text:
        return "an empty one matches every name"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(text)
    except re.error as error:
        return "" if "bad escape" in error.msg else error.msg
    except (OverflowError, RecursionError) as error:
        return str(error)
    return ""


def _name(text: str) -> str:
    """Return why a text is not a name, keyword or pattern of a rule; "" if it is one."""
    if text.startswith("/"):
        return pattern_problem(text[1:])
    return names.reference_problem(text.removeprefix("+"))


def ident(name: str, system: str, role: str) -> schema.Ident:
    """Return a line of pg_ident.conf. A system that begins with / is a pattern, quoted or not."""
    shown = quoting.hba(system) if system.startswith("/") else quoting.hba_name(system)
    return schema.Ident(quoting.hba_name(name), shown, quoting.hba_name(role))


def peer_users(pattern: str, extra: Iterable[Mapping[str, Any]], maps: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the system users that log in over the socket without a password; () where a pattern names them.

    `pattern` is that of the owner's local users, `extra` and `maps` are the user's own rules and maps.
    """
    match = _ALTERNATIVES.fullmatch(pattern)
    users = ["root", "postgres", *(match[1].split("|") if match else ())]
    for rule in extra:
        if rule.get("method") != "peer":
            continue
        name = rule.get("map")
        users += [str(each["system"]) for each in maps if each["map"] == name] if name else rule["users"]
    if match is None or any(each == "all" or not _SYSTEM_USER.fullmatch(each) for each in users):
        return ()
    return tuple(dict.fromkeys(users))


def network_problem(text: str) -> str:
    """Return "" for a network that PostgreSQL reads as written, otherwise the correct form."""
    inner = text.strip().replace("[", "").replace("]", "")
    try:
        network = ipaddress.ip_network(inner, strict=False)
    except ValueError:
        network = None
    if network is None or "%" in text:
        return f"write 10.0.0.5/32 for one address, 10.0.0.0/24, {' or '.join(KEYWORDS)}"
    length = inner.partition("/")[2]
    written = f"{network.network_address}/{network.prefixlen}"
    if not length:
        return f"write {written} for one address"
    single = f"{inner.partition('/')[0]}/{network.max_prefixlen}"
    if ipaddress.ip_interface(inner).ip != network.network_address:
        return f"bits of the host part are set; write {written}, or {single} for one address"
    # A netmask is not CIDR: pg_hba.conf has it in a column of its own.
    return "" if inner == text and length == str(network.prefixlen) else f"write {written}"


def opens(network: str) -> bool:
    """Return whether a network is all addresses or half of them, because two halves are all."""
    return network == "all" or (network not in KEYWORDS and ipaddress.ip_network(network).prefixlen <= 1)
