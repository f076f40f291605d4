"""Lines for `provision upgrade`: the plan of an upgrade, its result, and the next step. Pure."""

from __future__ import annotations

from typing import Any

from provision.host.upgrade import check, commands, journal, run
from provision.host.upgrade.context import Upgrade
from provision.plan.schema import Plan

NOTHING = "the upgrade was already finished: nothing was done"


def checked(upgrade: Upgrade, found: check.Found) -> dict[str, Any]:
    """Return the plan of an upgrade that nothing stops."""
    return {
        "from": upgrade.old.major, "to": upgrade.new.major, "method": upgrade.method, "size_mb": found.size_mb,
        "notices": found.notices, "stages": list(upgrade.stages),
        "start": commands.again(upgrade.new_plan, upgrade.new.major, upgrade.method),
    }  # fmt: skip


def lines(facts: dict[str, Any], plan: Plan) -> list[str]:
    """Return the lines of a plan or of a journal; `plan` is the host's."""
    if not facts:
        return ["this host was never upgraded"]
    if facts.get("part") == journal.REPLICA and "state" not in facts:
        size = f"{facts['size_mb']} MB"
        return [f"this replica can be cloned with PostgreSQL {facts['to']} ({size}); nothing was changed"]
    if "start" in facts:
        return [
            f"PostgreSQL {facts['from']} can be upgraded to {facts['to']} by {facts['method']} ({facts['size_mb']} MB)",
            *(f"note: {each}" for each in facts["notices"]),
            *(f"{number}. {text}" for number, text in enumerate(facts["stages"], 1)),
            f"the old server was not changed; to start: {facts['start']}",
        ]
    found = [journal.described(facts), *([NOTHING] if facts.get("repeated") else [])]
    found += [f"{stage}: {seconds} s" for stage, seconds in facts.get("seconds", {}).items()]
    if "down_seconds" in facts:
        found.append(f"clients of the pooler waited at most {facts['down_seconds']} s")
    found += [f"updated in {name}: {', '.join(each)}" for name, each in facts.get("updated", {}).items()]
    for name, rows in facts.get("before", {}).items():
        found += [f"{name}, {row['index']}: recall {row['recall']:.2f} before" for row in rows]
    return found + _next(facts, plan)


def _next(facts: dict[str, Any], plan: Plan) -> list[str]:
    state = journal.state(facts)
    served = state in journal.NEW_SERVES
    if journal.half_moved(facts):
        other = facts["from" if served else "to"]
        more = commands.again(plan, facts["to"], facts["method"]) if served else commands.rollback(plan)
        return [f"the replicas of PostgreSQL {other} have not left their cluster; if no playbook is running: {more}"]
    back = [f"to go back: {command}" for command in [run.way_back(plan, facts)] if command]
    if state in journal.GOING_BACK:
        return [f"a rollback is not finished; {back[0]}"]
    if state in journal.OPEN:
        where = "the new server is the database" if served else "the old server is the database"
        again = commands.again(plan, facts["to"], facts["method"])
        return [f"not finished ({where}); to continue: {again}", *back]
    if state == journal.FINISHED:
        return [
            f"set postgresql_version: {facts['to']} in the inventory",
            f"the old cluster is kept; to delete it: {commands.release(plan)}",
            *back,
        ]
    if state == journal.ROLLED_BACK:
        backup = ", then provision backup take: no restore crosses the rollback" if "down_seconds" in facts else ""
        return [f"set postgresql_version: {facts['from']} in the inventory and run site.yml{backup}"]
    return []
