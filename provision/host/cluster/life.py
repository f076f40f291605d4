"""Life of a cluster between failovers: status, rolling restart, reinitialise, pause. Does IO."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from provision.errors import HostError
from provision.host.cluster import orders, primary, switchover, view
from provision.host.cluster.dcs import Dcs, DcsError, RejectedError
from provision.host.cluster.patroni import Patroni, PatroniError
from provision.host.cluster.pooler import Pooler
from provision.plan.cluster import Cluster, Member
from provision.system import wait

Narrate = Callable[[str], None]
RETURN_S = 300
"""Longest wait for a restarted member to stream again."""
CLONE_S = 24 * 3600
READ_S = 60
"""Longest wait for every member to read a change of Patroni's mode, which it does once in each loop of up to 10 s."""
POLL_S = 0.5


@dataclass(frozen=True)
class Status:
    """A cluster and its poolers. `problems` are sentences; empty when all is well."""

    view: view.View
    poolers: tuple[orders.Report, ...]
    problems: tuple[str, ...]


def status(patroni: Patroni, dcs: Dcs) -> Status:
    """Ask Patroni and etcd. Raises PatroniError if no member answers; etcd's silence is a problem of the result."""
    cluster = patroni.access.cluster
    seen = patroni.view()
    problems, moving = [], ""
    try:
        moving = upgrading(dcs, cluster.scope)
        reports = orders.reports_of(dcs.read(orders.reports_key(cluster.scope)), cluster.scope)
    except DcsError as error:
        problems.append(f"etcd has no quorum or does not answer: {error.seen}")
        reports = {}
    else:
        problems += [
            f"the pooler of {name} has no running follower (systemctl status provision-follow)"
            for name in cluster.followers
            if name not in reports
        ]
    leader = seen.leader
    if leader is None:
        problems.append("there is no primary")
    else:
        problems += [f"{each.name} {gap}" for each in seen.members if each is not leader and (gap := each.gap(leader))]
        problems += [
            f"the pooler of {each.pooler} connects to {each.target}, not to the primary {leader.name}"
            for each in reports.values()
            if each.target != leader.name
        ]
    problems += [f"{each.name} is not running Patroni" for each in cluster.members if seen.member(each.name) is None]
    problems += [
        f"{name} runs Patroni but is not in the inventory: stop it there (docs/cluster.md, Remove a host)"
        for name in strangers(seen, cluster)
    ]
    if moving:
        problems.append(f"{moving}; automatic failover stays off, because a replica would take over with the old data")
    elif seen.paused:
        problems.append("automatic failover is off (provision cluster resume)")
    return Status(seen, tuple(reports[name] for name in sorted(reports)), tuple(problems))


def members_key(scope: str) -> str:
    """Return the prefix of the keys in which each member's Patroni writes about itself."""
    return f"{orders.patroni_folder(scope)}members/"


def records(dcs: Dcs, scope: str) -> dict[str, Mapping[str, Any]]:
    """Return what each member's Patroni last wrote of itself into etcd, such as version and pause. Raises DcsError."""
    folder = members_key(scope)
    found = {key.removeprefix(folder): json.loads(value.text) for key, value in dcs.read(folder).items()}
    return {name: record for name, record in found.items() if isinstance(record, dict)}


def strangers(seen: view.View, cluster: Cluster) -> list[str]:
    """Return the members of Patroni's cluster that the plan does not have: hosts removed from the inventory."""
    known = {each.name for each in cluster.members}
    return [each.name for each in seen.members if each.name not in known]


def lines(found: Status) -> list[str]:
    """Format a status for a terminal."""
    rows = [("member", "role", "state", "timeline", "lag", "restart")]
    rows += [
        (
            each.name, each.role, each.state, str(each.timeline or "-"),
            "-" if each.leader else f"{each.lag} B" if each.lag >= 0 else "unknown",
            "pending" if each.pending_restart else "-",
        )
        for each in found.view.members
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    poolers = [f"pooler {each.pooler} -> {each.target or 'no primary'} ({each.state})" for each in found.poolers]
    return [f"cluster {found.view.scope}", *table, *poolers, *(f"PROBLEM {text}" for text in found.problems)]


def restart(
    patroni: Patroni, dcs: Dcs, writable: primary.Writable, narrate: Narrate, *,
    everything: bool = False, only: str = "", wait_s: float = 10, force: bool = False,
) -> list[str]:  # fmt: skip
    """Restart members one at a time, the primary last while the poolers pause; return their names.

    They are those with a pending restart, `everything`, or `only` the one of a name. Raises HostError where a member
    does not come back; the others are then untouched.
    """
    cluster = patroni.access.cluster
    seen = patroni.view()
    leader = seen.leader
    if leader is None:
        raise HostError("the cluster has no primary: nothing is restarted", seen=view.describe(seen))
    if only and seen.member(only) is None:
        raise HostError(f"{only} is not a member of the cluster", where=cluster.scope, seen=view.describe(seen))
    due = [each for each in seen.members if (each.name == only if only else everything or each.pending_restart)]
    done = []
    for each in sorted(due, key=lambda one: one.leader):
        member = primary.member(cluster, each.name)
        if member is None:
            continue
        narrate(f"restarting {each.name}")
        if each.leader:
            _restart_primary(patroni, dcs, writable, narrate, member, wait_s, force=force)
        else:
            patroni.restart(member)
        returned(patroni, each.name, RETURN_S)
        done.append(each.name)
    return done


def _restart_primary(
    patroni: Patroni, dcs: Dcs, writable: primary.Writable, narrate: Narrate, member: Member, wait_s: float, *,
    force: bool,
) -> None:  # fmt: skip
    poolers = switchover.pooler_names(patroni, dcs, force=force)
    with orders.Held(dcs, patroni.access.cluster.scope, member.name, member.name, switchover.PAUSE_S) as held:
        switchover.prepare(held, poolers, narrate)
        switchover.pause(held, poolers, wait_s, narrate, force=force)
        patroni.restart(member, timeout_s=switchover.PAUSE_S)
        until = time.monotonic() + switchover.PAUSE_S
        while not writable(member):
            held.renew()
            if time.monotonic() > until:
                raise HostError(f"{member.name} does not accept writes after its restart; the poolers resume",
                                run=f"on {member.name}: journalctl -u patroni -n 50")  # fmt: skip
            time.sleep(0.05)


def follows(patroni: Patroni, name: str) -> bool:
    """Return whether a member is the primary or streams from it, on its timeline."""
    seen = _seen(patroni)
    return seen is not None and follows_in(seen, name)


def _seen(patroni: Patroni) -> view.View | None:
    try:
        return patroni.view()
    except PatroniError:
        return None


def follows_in(seen: view.View, name: str) -> bool:
    """Return whether a view has a member as the primary, or streaming from it on its timeline."""
    member, leader = seen.member(name), seen.leader
    return bool(member and leader and (member.leader or not member.gap(leader)))


def returned(patroni: Patroni, name: str, within_s: float, narrate: Narrate | None = None) -> None:
    """Wait until a member is the primary or streams from it. Raises HostError."""
    until, shown = time.monotonic() + within_s, ""
    state = "unknown"
    while time.monotonic() < until:
        seen = _seen(patroni)
        member = seen.member(name) if seen else None
        state = member.state if member else "unknown"
        if narrate and state != shown:
            narrate(f"{name}: {state}")
            shown = state
        if seen and follows_in(seen, name):
            return
        time.sleep(POLL_S)
    raise HostError(
        f"{name} does not stream again yet",
        seen=f"{state} after {within_s:g} s",
        run=f"on {name}: journalctl -u patroni -n 50",
    )


def replica(patroni: Patroni, name: str) -> Member:
    """Return a member that is not the primary. Raises HostError."""
    seen = patroni.view()
    found = primary.member(patroni.access.cluster, name)
    others = [each.name for each in seen.members if not each.leader]
    if found is None or seen.leader is None or name not in others:
        raise HostError(
            f"{name} is the primary, which holds the cluster's data" if seen.leader and name == seen.leader.name
            else "only a replica of a cluster with a primary can be reinitialised",
            where=patroni.access.cluster.scope,
            seen=view.describe(seen),
            allowed=", ".join(others),
            run="to reinitialise the primary, first: provision cluster switchover",
        )  # fmt: skip
    return found


def reinitialise(patroni: Patroni, member: Member, narrate: Narrate) -> None:
    """Clone a replica again and wait until it streams. Raises HostError."""
    patroni.reinitialise(member)
    time.sleep(2)  # Patroni first marks the member; until then it still streams
    returned(patroni, member.name, CLONE_S, narrate)


def set_pause(patroni: Patroni, paused: bool) -> bool:
    """Turn automatic failover off or on; False if it is so already. Raises PatroniError."""
    if patroni.view().paused == paused:
        return False
    cluster = patroni.access.cluster
    problem: PatroniError | None = None
    for member in sorted(cluster.members, key=lambda each: each.name != cluster.member):
        try:
            patroni.configure(member, {"pause": paused or None})
            return True
        except PatroniError as error:
            problem = error
    raise problem or PatroniError("the cluster has no members", where=cluster.scope)


def failover_off(patroni: Patroni, dcs: Dcs) -> bool:
    """Turn automatic failover off and wait until every member has read this; False if it was off already.

    Raises HostError; it is then as it was.

    A member writes the mode into its key at the end of a loop. A key that still has an earlier pause, which Patroni
    itself no longer remembers, must not count: Patroni would stop its server.
    """
    scope = patroni.access.cluster.scope

    def marks() -> list[bool]:
        return [bool(record.get("pause")) for record in records(dcs, scope).values()]

    ended = patroni.view().paused or wait(lambda: not any(marks()), READ_S)
    turned = ended and set_pause(patroni, True)
    if not (ended and wait(lambda: all(marks()), READ_S)):
        if turned:
            set_pause(patroni, False)
        raise HostError(
            f"the members did not read {'that automatic failover is off' if ended else 'the end of an earlier pause'} "
            f"within {READ_S} s; no server was stopped",
            where=scope, run="provision cluster status",
        )  # fmt: skip
    return turned


def upgrading(dcs: Dcs, scope: str) -> str:
    """Describe the major upgrade of a member that is not finished, "" without one. Raises DcsError.

    A host with a pooler alone may not read it, and sees none.
    """
    try:
        found = dcs.read(orders.upgrade_key(scope))
    except RejectedError:
        return ""
    return next((each.text for each in found.values()), "")


def route(patroni: Patroni, dcs: Dcs, pooler: Pooler) -> tuple[bool, str]:
    """Write the pooler's file for the current leader; return whether it changed, and the member's name.

    Without a leader the file stays, or names the first member where there is none. Raises HostError and OSError.
    """
    cluster = patroni.access.cluster
    try:
        found = dcs.read(orders.leader_key(cluster.scope))
        name = next((value.text for value in found.values()), "")
    except DcsError:
        name = primary.by_rest(patroni)
    member = primary.member(cluster, name) or primary.member(cluster, pooler.target) or cluster.members[0]
    return pooler.write(member), member.name
