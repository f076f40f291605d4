"""Judge what a host shares with others: the backup repository, its SSH server, stanzas. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from provision import addresses
from provision.plan import network, topology
from provision.plan.context import Context, Verdict, repositories, repository_kind

STANZA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED = ("global", "all")
"""Section of pgBackRest's configuration; a name that would read as every stanza."""


def judge(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    """Judge the stanza and the backup host of a database host."""
    _stanza(v, host, context, verdict)
    if v["backup_physical"] and repository_kind(v) == "host":
        _backup_host(v, host, context, verdict)


def _stanza(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    stanza = v["backup_stanza"]
    if not STANZA.fullmatch(stanza) or stanza in RESERVED:
        verdict.refusals.append(
            f"backup_stanza is {stanza!r}: expected letters, digits, _ . and -, a letter or digit first, "
            f"and none of {', '.join(RESERVED)}"
        )
    if not v["backup_physical"]:
        return
    shared = set(repositories(v))
    # Members of a cluster have one series of backups.
    together = {each.name for each in topology.members(context, str(v["cluster_name"]))} if v["cluster_enabled"] else ()
    verdict.refusals += [
        f"backup_stanza is {stanza!r} on {context.name} and on {peer.name}, which share a repository: set "
        "backup_stanza to another name on the host that has no backups yet"
        for peer in context.peers
        if peer.name not in together and peer.stanza == stanza and shared & peer.repositories
    ]
    known = ((host.get("applied") or {}).get("backup") or {}).get("stanza", "")
    if known not in ("", stanza):
        verdict.notices.append(
            f"backup_stanza changes from {known} to {stanza}: the backups of {known} stay in the repository, and "
            f"a new series begins; to continue the old one, set backup_stanza: {known}"
        )


def _backup_host(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    where, port, name = v["backup_repository_host"], v["backup_repository_port"], v["backup_repository_inventory_name"]
    if not network.may_be_host(where):
        verdict.refusals.append(
            f"backup_repository_host is {where!r}: expected the address or name of {name} for SSH, without user, "
            "brackets or port (backup_repository_port)"
        )
    problem = (host.get("repository") or {}).get("problem", "")
    if problem and context.runs("backup"):
        verdict.refusals.append(
            f"backup_repository_host: no SSH server answers this host at {addresses.endpoint(where, port)} "
            f"({problem}); open the port, or set backup_repository_host and backup_repository_port to the address and "
            f"port at which this host reaches {name}; --skip-tags backup leaves backups unchanged"
        )
    others = [each for each in context.groups.get("backup", ()) if each != name]
    if name in context.groups.get("backup", ()) and others:
        verdict.notices.append(
            f"the group backup has {len(others) + 1} hosts: this host backs up to {name} "
            f"(backup_repository_inventory_name), not to {', '.join(others)}"
        )
