"""Planned switchover: pause every pooler, promote another member, lead the poolers there, resume. Does IO.

Clients of the poolers wait, and none gets an error. Everything that can be judged is judged before the pause. Whatever
fails afterwards, the poolers resume (`orders.Held`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from provision.errors import HostError
from provision.host.cluster import orders, primary, view
from provision.host.cluster.dcs import Dcs, DcsError
from provision.host.cluster.patroni import Answer, Patroni, PatroniError
from provision.plan.cluster import Cluster, Member

PREPARE_S = 120
"""Longest wait for the checkpoint before the pause; without it, the shutdown takes longer."""
PAUSE_S = 30
"""Longest pause in all. Clients wait this long before they get an error."""
STREAM_S = 90
"""Longest wait for the old primary to stream from the new one."""
OTHERWISE = "or --force to continue without them"
Narrate = Callable[[str], None]


@dataclass(frozen=True)
class Switched:
    """A finished switchover. Seconds: the whole pause, and its parts, from the one before to each event."""

    source: str
    target: str
    poolers: tuple[str, ...]
    paused_s: float
    drained_s: float
    """All transactions ended."""
    promoted_s: float
    """The new primary accepts writes."""
    resumed_s: float
    """Every pooler resumed."""
    streaming: bool
    """The old primary streams from the new one."""


def pooler_names(patroni: Patroni, dcs: Dcs, *, force: bool, otherwise: str = OTHERWISE) -> list[str]:
    """Return the poolers whose followers live. Raises HostError if one is missing, unless `force`.

    If a member's Patroni does not answer, its pooler is assumed down too. A host with a pooler alone offers no such
    sign, so its missing follower always counts.
    """
    cluster = patroni.access.cluster
    known = orders.reports_of(dcs.read(orders.reports_key(cluster.scope)), cluster.scope)
    missing = [each.name for each in cluster.members if each.name not in known and patroni.answers(each)]
    missing += [each.name for each in cluster.poolers if each.name not in known]
    if missing and not force:
        raise HostError(
            "poolers have no running follower, so their clients would get errors",
            where=cluster.scope,
            seen=", ".join(missing),
            allowed="a follower on each member" + (" and each host of the group pooler" if cluster.poolers else ""),
            run=f"systemctl start provision-follow on these hosts, {otherwise}",
        )
    return sorted(known)


def switchover(
    patroni: Patroni, dcs: Dcs, writable: primary.Writable, narrate: Narrate, *,
    to: str = "", wait_s: float = 10, force: bool = False,
) -> Switched:  # fmt: skip
    """Promote `to`, or the best replica. Raises HostError; the primary is then the old one, or Patroni's choice.

    `wait_s` limits the wait for running transactions; `force` terminates those that exceed it, and goes on without
    poolers whose follower is missing.
    """
    cluster = patroni.access.cluster
    seen = patroni.view()
    chosen = view.candidate(seen, cluster, to)
    source, target = _named(cluster, seen.leader), _named(cluster, chosen)
    poolers = pooler_names(patroni, dcs, force=force)
    with orders.Held(dcs, cluster.scope, source.name, target.name, PAUSE_S) as held:
        prepare(held, poolers, narrate)
        begun = time.monotonic()
        drained = pause(held, poolers, wait_s, narrate, force=force)
        thread = ThreadPoolExecutor(1)
        asked = thread.submit(patroni.switchover, source, target.name)
        thread.shutdown(wait=False)  # Patroni answers up to a second after the new primary accepts writes
        _promoted(held, asked, lambda: writable(target), target)
        promoted_s = time.monotonic() - begun - drained
        held.say(orders.RESUME)
        resumed = held.wait(lambda reports: _all(reports, poolers, "resumed"), PAUSE_S)
        paused_s = time.monotonic() - begun
        if not resumed:
            narrate("not every pooler has reported that it resumed: provision cluster status")
    narrate(f"{target.name} is the primary; clients waited {paused_s:.1f} s; waiting for {source.name} to stream")
    resumed_s = paused_s - drained - promoted_s
    streaming = _streams(patroni, source.name)
    return Switched(source.name, target.name, tuple(poolers), paused_s, drained, promoted_s, resumed_s, streaming)


def prepare(held: orders.Held, poolers: list[str], narrate: Narrate) -> None:
    """Have the primary write a checkpoint before the pause. Raises DcsError."""
    if held.order.source not in poolers:
        return
    narrate(f"writing a checkpoint on {held.order.source}")
    if not held.wait(lambda reports: _is(reports, held.order.source, "prepared"), PREPARE_S):
        narrate(f"the checkpoint is not complete after {PREPARE_S} s: continuing without it")


def pause(held: orders.Held, poolers: list[str], wait_s: float, narrate: Narrate, *, force: bool) -> float:
    """Pause all poolers and wait for running transactions; return the seconds it took. Raises HostError."""
    narrate(f"pausing {', '.join(poolers) or 'no pooler'}")
    begun = time.monotonic()
    held.say(orders.PAUSE)
    if not held.wait(lambda reports: _all(reports, poolers, "paused"), wait_s):
        reports = held.reports()
        seen = [
            f"{name}: {reports[name].problem or f'{reports[name].running} transactions run'}"
            for name in poolers
            if name in reports and reports[name].state != "paused"
        ]
        if not force:
            raise HostError(
                f"transactions did not end within {wait_s:g} s; nothing was switched and the poolers resume",
                seen="; ".join(seen) or "a follower stopped",
                run="end them (docs/statements-wait.md); or provision cluster switchover, with --wait or --force",
            )
        narrate(f"terminating transactions: {'; '.join(seen)}")
    return time.monotonic() - begun


def _promoted(held: orders.Held, asked: Future[Answer], writable: Callable[[], bool], target: Member) -> None:
    """Wait until the new primary accepts writes. Raises HostError when Patroni refuses or the time is over."""
    until = time.monotonic() + PAUSE_S
    while time.monotonic() < until:
        held.renew()
        if asked.done() and (error := asked.exception()):
            raise HostError(
                f"Patroni did not switch over to {target.name}; the poolers resume",
                seen=error.seen if isinstance(error, HostError) else str(error),
                run="provision cluster status",
            )
        if writable():
            return
        time.sleep(0.05)
    raise HostError(
        f"{target.name} does not accept writes after {PAUSE_S} s; the poolers resume and follow Patroni's leader",
        run="provision cluster status",
    )


def _streams(patroni: Patroni, name: str) -> bool:
    until = time.monotonic() + STREAM_S
    while time.monotonic() < until:
        try:
            seen = patroni.view()
            member, leader = seen.member(name), seen.leader
            if member and leader and member.state == "streaming" and member.timeline == leader.timeline:
                return True
        except (PatroniError, DcsError):
            pass
        time.sleep(0.5)
    return False


def _named(cluster: Cluster, seen: view.Member | None) -> Member:
    found = primary.member(cluster, seen.name if seen else "")
    if found is None:
        raise HostError(
            "Patroni has a member that the plan does not know",
            where=cluster.scope,
            seen=seen.name if seen else "",
            allowed=", ".join(each.name for each in cluster.members),
            run="run site.yml for all hosts of the cluster",
        )
    return found


def _is(reports: dict[str, orders.Report], name: str, state: str) -> bool:
    """Whether a pooler is in a state, or its follower stopped meanwhile."""
    return name not in reports or reports[name].state == state


def _all(reports: dict[str, orders.Report], names: list[str], state: str) -> bool:
    return all(_is(reports, name, state) for name in names)
