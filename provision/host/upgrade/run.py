"""Run an upgrade: stages in order, each repeatable, with the pooler paused while no server serves. Does IO as root.

The old server serves during check, make, backup and measure. What follows depends on the method. The same command
continues after a kill at any stage (`journal`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from provision import system
from provision.errors import HostError
from provision.host.backup import fresh
from provision.host.backup import journal as locks
from provision.host.server import cluster
from provision.host.upgrade import after, binary, check, commands, context, demands, journal, logical, members, side
from provision.host.upgrade import search as searches
from provision.host.upgrade.closed import Server
from provision.host.upgrade.context import Upgrade
from provision.host.upgrade.side import Side
from provision.plan.schema import Plan


def _nothing(*_arguments: object) -> None:
    return


@dataclass(frozen=True)
class Method:
    """A way to move the data: its stages, and the functions that run them."""

    stages: tuple[str, ...]
    rehearse: Callable[[Upgrade], None]
    """Find what stops the new server, while the old one serves."""
    make: Callable[[Upgrade], None]
    copy: Callable[[Upgrade], None]
    """Copy while the old server serves."""
    move: Callable[[Upgrade], None]
    """Let the new server serve instead of the old one, while clients of the pooler wait."""
    finish: Callable[[Upgrade], None]
    back: Callable[[Upgrade, bool], None]
    """Let the old server serve again; the second argument says whether the new one has served."""
    release: Callable[[Upgrade, Server, Server], None]
    """Prepare the deletion of the second server, while the first is kept."""
    statistics: Callable[[Plan], None]
    """Collect all statistics while the new server serves."""
    keeps: bool
    """The way back loses nothing that was written to the new server."""
    keep: Callable[[Upgrade], None] = _nothing
    """Keep that way ready, after a run with the new major."""
    problems: Callable[[Plan, Plan], list[str]] = lambda _old, _new: []
    notices: Callable[[Plan], list[str]] = lambda _old: []


PG_UPGRADE = Method(
    binary.STAGES, binary.rehearse, binary.rehearse, _nothing, binary.move, _nothing, binary.back, _nothing,
    after.statistics_after_pg_upgrade, keeps=False,
)  # fmt: skip
LOGICAL = Method(
    logical.STAGES, logical.rehearse, logical.make, logical.copy, logical.move, logical.finish, logical.back,
    logical.release, after.statistics, keeps=True, keep=logical.keep, problems=demands.problems,
    notices=demands.notices,
)  # fmt: skip
ANALYSED = "analysed"
"""Key of the journal: all statistics were collected. A cluster does so once its replicas are cloned."""
METHODS = dict(zip(journal.METHODS, (PG_UPGRADE, PG_UPGRADE, LOGICAL), strict=True))


def begin(old: Plan, new: Plan, method: str, narrate: context.Narrate) -> Upgrade:
    """Return an upgrade with the stages of its method."""
    return Upgrade(old, new, method, narrate, METHODS[method].stages)


def create(plan: Plan) -> bool:
    """Make the configuration of NEW/main, sealed; False if it exists. Raises HostError."""
    new = Side.of(plan)
    if new.running or journal.state(journal.read()) in journal.NEW_SERVES:
        return False
    changed = cluster.create(plan)
    side.seal(new)  # a reboot would start an empty server
    return changed


def run(upgrade: Upgrade, confirm: str) -> dict[str, Any]:
    """Upgrade, or continue an upgrade, and return the journal. Raises UsageError without confirmation, HostError."""
    commands.refuse(upgrade.new_plan, confirm)
    method = METHODS[upgrade.method]
    with locks.held(journal.NAME, "another upgrade is running on this host", journal.STATUS):
        upgrade.facts = _begun(upgrade)
        state = journal.state(upgrade.facts)
        if state == journal.FINISHED:
            method.keep(upgrade)
            later = journal.half_moved(upgrade.facts) or not upgrade.new.running  # the roles start it
            if later or upgrade.facts.get(ANALYSED, True):
                return {**upgrade.facts, "repeated": True}
            return _analysed(upgrade, method)
        if state in ("", journal.CHECKED, journal.PREPARED):
            _before(upgrade, method)
        if journal.state(upgrade.facts) in (journal.PREPARED, journal.COPYING):
            method.copy(upgrade)
        if journal.state(upgrade.facts) != journal.SERVING:
            method.move(upgrade)
        upgrade.new_server.start()  # after a kill or a reboot; else it runs
        method.finish(upgrade)
        if upgrade.facts.get("part") == journal.PRIMARY:  # first the replicas: until then nothing could take over
            upgrade.write(journal.FINISHED, finished=system.stamp(), **{ANALYSED: False})
            return upgrade.facts
        return _analysed(upgrade, method)


def _analysed(upgrade: Upgrade, method: Method) -> dict[str, Any]:
    with upgrade.stage(context.STATISTICS):
        method.statistics(upgrade.new_plan)
    upgrade.write(journal.FINISHED, finished=upgrade.facts.get("finished") or system.stamp(), **{ANALYSED: True})
    return upgrade.facts


def _begun(upgrade: Upgrade) -> dict[str, Any]:
    """Return the journal of this upgrade, new or to be continued. Raises HostError for another one."""
    found = journal.read()
    state, new = journal.state(found), upgrade.new.major
    if state in journal.GOING_BACK:
        raise HostError(
            "a rollback has not finished", seen=journal.described(found), run=way_back(upgrade.new_plan, found)
        )
    if state in (*journal.OPEN, journal.FINISHED):
        early = state in (journal.CHECKED, journal.PREPARED) and not METHODS[str(found["method"])].keeps
        if (found["to"], found["method"]) != (new, upgrade.method) and not early:
            if state == journal.FINISHED and new > int(found["to"]):
                raise HostError(
                    "the old cluster of the last upgrade is still there",
                    seen=journal.described(found), run=commands.release(upgrade.new_plan),
                )  # fmt: skip
            raise HostError(
                "another upgrade of this host has begun",
                seen=journal.described(found),
                allowed=f"-e upgrade_to={found['to']} -e upgrade_method={found['method']}",
                run=", or ".join(filter(None, (
                    commands.again(upgrade.new_plan, found["to"], found["method"]), way_back(upgrade.new_plan, found),
                ))),
            )  # fmt: skip
        return {**found, "to": new, "method": upgrade.method, "part": _part(upgrade)}
    upgrade.new_server.forget()
    begun = {"from": upgrade.old.major, "to": new, "method": upgrade.method, "begun": system.stamp()}
    return {**begun, "part": _part(upgrade)}


def _part(upgrade: Upgrade) -> str:
    found = members.part(upgrade.old_plan, upgrade.new.major)
    if found == journal.REPLICA:
        members.refuse_replica(upgrade.old_plan)
    return found


def way_back(plan: Plan, facts: dict[str, Any]) -> str:
    """Return the command that goes back from an upgrade; "" where there is no way back."""
    served, method = journal.state(facts) in journal.NEW_SERVES, str(facts["method"])
    if served and method == "link":
        return ""
    return commands.rollback(plan, loses=served and not METHODS[method].keeps)


def judge(upgrade: Upgrade) -> check.Found:
    """Check all that stops the upgrade while the old server serves; the new cluster is made for pg_upgrade's check.

    Raises HostError with every problem, and where an upgrade has begun, whose new cluster this would delete.
    """
    with locks.held(journal.NAME, "an upgrade is running on this host", journal.STATUS):
        facts = journal.read()
        if journal.state(facts) in (journal.COPYING, *journal.DOWN, *journal.NEW_SERVES):
            raise HostError("an upgrade of this host has begun", seen=journal.described(facts), run=journal.STATUS)
        found = look(upgrade)
        METHODS[upgrade.method].rehearse(upgrade)
        return found


def look(upgrade: Upgrade) -> check.Found:
    """Ask the old server and the host. Raises HostError with every problem."""
    old, new, method = upgrade.old_plan, upgrade.new_plan, METHODS[upgrade.method]
    found = check.look(old, new, upgrade.method)
    found.problems += [] if found.problems else [*members.problems(old), *method.problems(old, new)]
    context.refuse(upgrade, found.problems)
    found.notices += [*members.notices(old), *method.notices(old)]
    return found


def _before(upgrade: Upgrade, method: Method) -> None:
    """Everything that the old server can serve meanwhile."""
    cluster.start(upgrade.old_plan)
    upgrade.write(journal.CHECKED)
    with upgrade.stage(context.CHECK):
        found = look(upgrade)
        for notice in found.notices:
            upgrade.narrate(f"note: {notice}")
    with upgrade.stage(method.stages[1]):
        method.make(upgrade)
        context.keep_old(upgrade)
    with upgrade.stage(context.BACKUP):
        fresh.ensure(upgrade.old_plan)
    with upgrade.stage(context.RECALL):
        plan = upgrade.old_plan
        before = {name: searches.as_facts(searches.measure(plan, name)) for name in plan.access.databases}
    upgrade.write(
        journal.PREPARED,
        before=before,
        size_mb=found.size_mb,
        databases=after.contents(upgrade.old_plan),
        systems=[after.identifier(upgrade.old_plan)],
    )
