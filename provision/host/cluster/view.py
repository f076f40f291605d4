"""What Patroni says of a cluster, typed: members, leader, lag, pause. Pure.

Reads the answer of `GET /cluster` of Patroni 3.0 to 4.1 (https://patroni.readthedocs.io/en/latest/rest_api.html).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from provision.errors import HostError
from provision.plan.cluster import Cluster

LEADERS = ("leader", "standby_leader")
SYNCHRONOUS = ("sync_standby", "quorum_standby")
STREAMING = "streaming"


@dataclass(frozen=True)
class Member:
    """A member as the leader knows it. `lag` is in bytes, -1 where it is unknown; `timeline` is 0 where it is."""

    name: str
    role: str
    """leader, replica, sync_standby or quorum_standby."""
    state: str
    host: str
    port: int
    timeline: int
    lag: int
    pending_restart: bool
    tags: Mapping[str, Any]

    @property
    def leader(self) -> bool:
        """Whether this member holds the leader key."""
        return self.role in LEADERS

    def gap(self, leader: Member) -> str:
        """Say why this replica does not follow the leader; "" if it streams on the leader's timeline."""
        if self.state != STREAMING:
            return f"is {self.state}, not {STREAMING}"
        return "" if self.timeline == leader.timeline else f"is on timeline {self.timeline}, not {leader.timeline}"


@dataclass(frozen=True)
class View:
    """A cluster at one moment."""

    scope: str
    members: tuple[Member, ...]
    paused: bool
    """Patroni's automatic failover is off (`provision cluster pause`)."""

    @property
    def leader(self) -> Member | None:
        """The member that holds the leader key."""
        return next((each for each in self.members if each.leader), None)

    @property
    def replicas(self) -> tuple[Member, ...]:
        """The other members."""
        return tuple(each for each in self.members if not each.leader)

    def member(self, name: str) -> Member | None:
        """Return a member by name."""
        return next((each for each in self.members if each.name == name), None)


def of(answer: Mapping[str, Any]) -> View:
    """Make a view of the JSON answer. Raises ValueError for another text."""
    try:
        members = [
            Member(
                name=str(row["name"]),
                role=str(row["role"]).replace("master", "leader"),
                state=str(row.get("state", "unknown")),
                host=str(row.get("host", "")),
                port=int(row.get("port", 0)),
                timeline=_number(row.get("timeline"), 0),
                lag=0 if row["role"] in LEADERS else _number(row.get("lag"), -1),
                pending_restart=bool(row.get("pending_restart", False)),
                tags=dict(row.get("tags", {})),
            )
            for row in answer["members"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a cluster: {error}") from None
    return View(str(answer.get("scope", "")), tuple(members), bool(answer.get("pause", False)))


def with_streams(view: View, rows: Sequence[Mapping[str, Any]]) -> View:
    """Return a view whose running replicas are streaming if the primary says so: `rows` are of pg_stat_replication."""
    streams = {str(row.get("application_name")) for row in rows if row.get("state") == "streaming"}
    members = [
        replace(each, state="streaming")
        if not each.leader and each.state == "running" and each.name in streams
        else each
        for each in view.members
    ]
    return replace(view, members=tuple(members))


def _number(value: object, otherwise: int) -> int:
    return int(value) if isinstance(value, (int, float)) else otherwise


def candidate(view: View, cluster: Cluster, to: str = "") -> Member:
    """Return the member that a switchover promotes: `to`, or the replica with the least lag, synchronous ones first.

    Raises HostError, before anything is changed, for a member that cannot or must not become primary.
    """
    leader = view.leader
    if leader is None:
        raise HostError(
            "the cluster has no leader, so there is nothing to switch over",
            where=view.scope,
            seen=describe(view),
            run="journalctl -u patroni -n 50 on each member; Patroni elects a leader by itself",
        )
    if to == leader.name:
        raise HostError(f"{to} is the primary already", where=view.scope, seen=describe(view))
    problems = {each.name: _problem(each, leader, cluster) for each in view.members if each is not leader}
    if not to:
        able = [each for each in view.members if each is not leader and not problems[each.name]]
        if able:
            return min(able, key=lambda each: (each.role not in SYNCHRONOUS, each.lag, each.name))
    if to and to not in problems:
        raise HostError(
            f"{to} is not a member of the cluster", where=view.scope, seen=describe(view), allowed=", ".join(problems)
        )
    if to and not problems[to]:
        return next(each for each in view.members if each.name == to)
    able_names = [name for name, problem in problems.items() if not problem]
    raise HostError(
        f"{to} cannot become primary" if to else "no member can become primary",
        where=view.scope,
        seen=problems[to]
        if to
        else "; ".join(f"{name} {problem}" for name, problem in problems.items()) or "no replica",
        allowed=", ".join(able_names) or "a replica that streams, on the primary's timeline, without lag",
        run="provision cluster status",
    )


LAG_ALLOWED = 16 * 1024 * 1024
"""Bytes that a candidate may lag, one WAL segment: clients wait until it has replayed them."""


def _problem(member: Member, leader: Member, cluster: Cluster) -> str:
    """Say why a member cannot become primary; "" if it can."""
    if member.name not in {each.name for each in cluster.members}:
        return "is not in the inventory"
    if gap := member.gap(leader):
        return gap
    if member.lag < 0:
        return "has an unknown lag"
    if member.lag > LAG_ALLOWED:
        return f"lags {member.lag / 2**20:.0f} MiB (at most {LAG_ALLOWED // 2**20})"
    if member.tags.get("nofailover"):
        return "has the tag nofailover"
    if cluster.synchronous == "on" and member.role not in SYNCHRONOUS:
        return "is not a synchronous replica (synchronous: on)"
    return ""


def describe(view: View) -> str:
    """Return one phrase for each member: db1 leader running, db2 replica streaming lag 0."""
    rows = [
        f"{each.name} {each.role} {each.state}"
        + ("" if each.leader else f" lag {each.lag if each.lag >= 0 else 'unknown'}")
        for each in view.members
    ]
    return ", ".join(rows) or "no members"
