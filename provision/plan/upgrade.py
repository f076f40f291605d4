"""Judge a major upgrade, and runs beside one that has not ended: which cluster should serve, and which does. Pure.

A host serves one major. A run for another one is refused with the command that moves the host there, for site.yml
would otherwise put an empty server beside the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from provision.plan.context import Context, Verdict

ROLE = "upgrade"
"""The role of upgrade.yml, whose packages are the server's too."""
COPYING = "copying"
"""The old server serves, and a new one beside it receives its rows (upgrade_method logical)."""
DOWN = ("stopped", "transferred", "started", "returning", "returned")
"""States of the journal (host.upgrade.journal) in which no server may be running, and no other run may start one."""
GOING_BACK = ("returning", "returned")
"""States of a rollback that has closed the new server: only the same command continues."""
NEW_SERVES = ("started", "serving", "finished", "returning", "returned")
"""States in which the new server has started: after a link upgrade, the old data is no longer usable."""
HANDED_OVER = "handed_over"
"""Key of the journal of a cluster's upgraded member: the cluster that no longer serves is not in etcd any more."""
PAGE = "docs/move-to-another-major.md"


def judge(v: Mapping[str, Any], host: Mapping[str, Any], context: Context, verdict: Verdict) -> None:
    """Judge a run of upgrade.yml; of another playbook, that no upgrade is unfinished."""
    journal, now, major = host["upgrade"], host["plan_major"], v["postgresql_version"]
    state = str(journal.get("state", ""))
    if ROLE not in context.roles:
        if half_moved(journal):
            verdict.refusals.append(
                f"the replicas have not left the other cluster (upgrade {state}): repeat upgrade.yml "
                f"with {_options(journal)} for all members ({PAGE})"
            )
        if state in GOING_BACK:
            verdict.refusals.append(
                f"a rollback from {journal.get('to')} to {journal.get('from')} has not finished ({state}): repeat "
                f"upgrade.yml -e upgrade_rollback=yes ({PAGE})"
            )
        elif state in (COPYING, *DOWN):
            verdict.refusals.append(
                f"an upgrade from {journal.get('from')} to {journal.get('to')} has not finished ({state}): repeat "
                f"upgrade.yml -e upgrade_to={journal.get('to')} -e upgrade_method={journal.get('method')}, or go back "
                f"with -e upgrade_rollback=yes ({PAGE})"
            )
        return
    if v["upgrade_to"] != major:
        verdict.refusals.append(
            f"upgrade_to is {v['upgrade_to']}, postgresql_version is {major}: set postgresql_version to the new major "
            "in the inventory first, with what it needs, and give the same with -e upgrade_to"
        )
    if v["cluster_enabled"] and v["upgrade_method"] == "logical":
        verdict.refusals.append(
            "upgrade_method is logical and cluster_enabled is true: a failover would lose the slots that the rollback "
            "needs; use copy or link"
        )
    if v["citus_group"] >= 0:
        verdict.refusals.append(
            "citus_group is set: upgrade.yml does not support fleets; export each tenant to a new fleet "
            "with the other major (docs/fleet.md)"
        )
    if not host["systemd"]:
        verdict.refusals.append("systemd is not running: upgrade.yml stops and starts the servers as its units")
    if not now:
        verdict.refusals.append("this host was not converged: run site.yml first, with the major that it runs")
    elif host["toolkit_sha256"] != context.toolkit_sha256:
        verdict.refusals.append(
            f"the command on this host is of another version: run site.yml with postgresql_version {now} first"
        )
    if now > major or (now == major and not (state in NEW_SERVES and _new(journal) == major)):
        verdict.refusals.append(f"upgrade_to is {major}: this host runs PostgreSQL {now}; expected a newer major")


def half_moved(journal: Mapping[str, Any]) -> bool:
    """Whether a cluster's member was upgraded or went back, and etcd still has the other cluster."""
    ended = str(journal.get("state")) in ("finished", "rolled back")
    return ended and journal.get("part") == "primary" and not journal.get(HANDED_OVER)


def _options(journal: Mapping[str, Any]) -> str:
    if journal.get("state") == "finished":
        return f"-e upgrade_to={journal.get('to')} -e upgrade_method={journal.get('method')}"
    return "-e upgrade_rollback=yes"


def _new(journal: Mapping[str, Any]) -> int:
    return int(journal.get("to") or 0)


def allowed(cluster: Mapping[str, Any], host: Mapping[str, Any], context: Context) -> bool:
    """Whether a running cluster of another major is the one that upgrade.yml moves, or the other one of an upgrade by
    logical replication, which only postgres and root reach."""
    journal = host["upgrade"]
    beside = {COPYING: journal.get("to"), "serving": journal.get("from"), "finished": journal.get("from")}
    replicates = journal.get("method") == "logical" and str(beside.get(str(journal.get("state")))) == cluster["major"]
    moved = ROLE in context.roles and cluster["major"] == str(host["plan_major"])
    return bool(cluster["name"] == "main" and (moved or replicates))


def way(cluster: Mapping[str, Any], host: Mapping[str, Any], major: int) -> str:
    """Return what to do about a cluster of another major that serves."""
    seen = int(cluster["major"]) if str(cluster["major"]).isdigit() else 0
    journal = host["upgrade"]
    if str(journal.get("state")) in NEW_SERVES and _new(journal) == seen and seen > major:
        return f"this host was upgraded from {journal.get('from')} to {seen}: set postgresql_version: {seen}"
    keep = f"set postgresql_version: {seen} to keep it"
    if host["plan_major"] == seen and 0 < seen < major:
        return f"{keep}, or upgrade with ansible-playbook upgrade.yml -e upgrade_to={major}"
    return keep


def stopped(cluster: Mapping[str, Any], host: Mapping[str, Any], context: Context, major: int) -> str:
    """Return why a stopped cluster of another major is no leftover: an earlier run made it the host's; "" if it is."""
    ours = cluster["name"] == "main" and cluster["major"] == str(host["plan_major"])
    if not ours or host["plan_major"] == major or ROLE in context.roles:
        return ""
    return (
        f"cluster {cluster['major']}/main, which an earlier run made this host's, is stopped and postgresql_version is "
        f"{major}: a run would put an empty server in its place; {way(cluster, host, major)} ({PAGE})"
    )
