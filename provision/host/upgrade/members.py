"""What an upgrade does differently on the members of a cluster. Does IO, as root.

The primary is upgraded like a single host, without Patroni, while every pooler waits. Then the replicas leave the old
cluster, the primary replaces it in etcd, and the run that follows makes the new one: Patroni takes over the primary's
server and clones the others. Automatic failover is off before the old server is stopped, because a replica that took
over would serve the old data. A rollback goes the same way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from provision import secure_path
from provision.errors import HostError
from provision.host.cluster import access, life, orders, primary
from provision.host.cluster.dcs import Dcs
from provision.host.cluster.patroni import Patroni, PatroniError
from provision.host.member import apply, origin
from provision.host.server import patroni
from provision.host.update import rolling
from provision.host.upgrade import check, commands, context, journal, side, transfer
from provision.host.upgrade.context import Upgrade
from provision.host.upgrade.side import Side
from provision.plan import load
from provision.plan.schema import Plan
from provision.system import run, wait

START_S = 300.0
FORGET_S = 60.0
"""Longest wait for the keys of members that have stopped: longer than any ttl of cluster.timers."""
WENT_BACK = "has gone back from"
Narrate = Callable[[str], None]


def part(plan: Plan, to: int = 0) -> str:
    """Return this host's part in the upgrade to a major, or with 0 in the last one: alone, primary or replica.

    Once no server serves, the journal decides: the old cluster no longer has a leader. Raises PatroniError.
    """
    if not plan.server.patroni:
        return journal.ALONE
    facts = journal.read()
    decided = (*journal.DOWN, *journal.NEW_SERVES, *(() if to else (*journal.OPEN, journal.ROLLED_BACK)))
    if journal.state(facts) in decided and to in (0, facts["to"]) and "part" in facts:
        return str(facts["part"])
    return journal.PRIMARY if rolling.is_primary(plan) else journal.REPLICA


def names(plan: Plan) -> list[str]:
    """Return the members that an upgrade of this host needs, [] on a single host."""
    return [each.name for each in plan.members] if plan.server.patroni else []


def problems(plan: Plan) -> list[str]:
    """Return why the upgrade of this primary's cluster cannot begin, [] on a single host. Raises PatroniError."""
    if not plan.server.patroni:
        return []
    found = [f"the cluster is not complete: {each} (provision cluster status)" for each in rolling.gaps(plan)]
    reach = access.controlling(plan)
    if Patroni(reach).view().paused and not life.upgrading(Dcs.of(reach), reach.cluster.scope):
        found.append("automatic failover is off: provision cluster resume")
    return found


def notices(plan: Plan) -> list[str]:
    """Return what an upgrade of a cluster means for its replicas."""
    if not plan.server.patroni:
        return []
    return [
        "from the stop of the old server until the first replica is cloned, commits are on the primary alone, whatever "
        "cluster.synchronous and cluster.strict say, and no member can take over; the replicas keep their old data "
        "until the release"
    ]


def checked(upgrade: Upgrade) -> dict[str, Any]:
    """Check that this replica can be cloned with the new major. Raises HostError with every problem."""
    new, state = upgrade.new, journal.state(journal.read())
    size_mb = int(run("du", "--summarize", "--block-size=1M", upgrade.old.data).stdout.split()[0])
    if state not in journal.NEW_SERVES:
        missing = f"{new.programs}/pg_ctl is missing: run upgrade.yml, which installs the packages"
        there = (new.programs / "pg_ctl").exists()
        context.refuse(upgrade, check.space(upgrade.old, new, "clone", size_mb) if there else [missing])
    return {"part": journal.REPLICA, "from": upgrade.old.major, "to": new.major, "size_mb": size_mb}


def refuse_replica(plan: Plan) -> None:
    """Raise HostError while another member is the primary. While no member answers, there is none."""
    if not plan.server.patroni:
        return
    reach = access.required(plan)
    with suppress(PatroniError):
        leader = Patroni(access.controlling(plan)).view().leader
        if leader and leader.name != reach.member:
            raise HostError(
                f"{leader.name} is the primary: an upgrade and its rollback begin on the primary", where=plan.name,
                allowed=f"an upgrade on {leader.name}; a rollback on the member that was upgraded, as the primary",
                run=f"provision cluster switchover --to {reach.member}, and repeat",
            )  # fmt: skip


def mark(upgrade: Upgrade, *, back: bool = False) -> None:
    """Note in etcd that this member is upgraded, or that it went `back`, for the other members. Raises DcsError.

    `provision cluster resume` then does not turn failover on.
    """
    if not upgrade.old_plan.server.patroni:
        return
    reach = access.controlling(upgrade.old_plan)
    text = f"{reach.cluster.member} is being moved from PostgreSQL {upgrade.old.major} to {upgrade.new.major}"
    if back:
        text = f"{reach.cluster.member} {WENT_BACK} PostgreSQL {upgrade.new.major} to {upgrade.old.major}"
    Dcs.of(reach).put(orders.upgrade_key(reach.cluster.scope), text)


def unmark(plan: Plan) -> None:
    """Remove the note. Raises DcsError."""
    reach = access.controlling(plan)
    Dcs.of(reach).delete(orders.upgrade_key(reach.cluster.scope))


def release(plan: Plan) -> None:
    """Stop Patroni of this host for good; in its maintenance mode, the server goes on."""
    if plan.server.patroni:
        run("systemctl", "disable", "--now", patroni.UNIT)


def serve(plan: Plan, old: Side, narrate: Narrate) -> bool:
    """Start a stopped server under Patroni again; False where its cluster is no longer in etcd. Raises HostError."""
    if not plan.server.patroni or origin.initialised(plan) != apply.system_identifier(plan):
        return False
    side.seal(old)  # for Debian's tools: Patroni alone starts it
    patroni.start()
    reach = access.controlling(plan)
    api, here, writable = Patroni(reach), reach.cluster.here, primary.checker(plan)
    narrate(f"start PostgreSQL {plan.server.major} under Patroni")
    if not wait(lambda: api.answers(here), START_S):
        raise _silent("Patroni does not start")
    if not old.running:
        api.restart(here)  # in maintenance mode, Patroni starts no server by itself
    if not wait(lambda: writable(here), START_S):
        raise _silent("the server does not accept writes")
    unmark(plan)
    life.set_pause(api, False)
    life.returned(api, here.name, life.RETURN_S, narrate)
    return True


def _silent(problem: str) -> HostError:
    return HostError(
        f"{problem}; automatic failover is off", where=patroni.UNIT, seen=patroni.last_words(),
        run=f"journalctl -u {patroni.UNIT} -n 50",
    )  # fmt: skip


def leave(method: str, narrate: Narrate, *, back: bool) -> bool:
    """Leave, on a replica, the cluster that no longer serves: the old one, or after a rollback the new one.

    False if it is done. Can be repeated. Raises HostError.
    """
    plan, new, facts = load.load(), load.load(journal.NEW_PLAN), journal.read()
    state = journal.state(facts)
    if back:
        done = state not in (journal.STOPPED, journal.FINISHED, journal.RETURNING)
    else:
        done = state == journal.FINISHED and facts["to"] == new.server.major == plan.server.major
    if done:
        return False
    old = plan if plan.server.major != new.server.major else load.load(journal.OLD_PLAN)
    _refuse_serving(plan)
    upgrade = Upgrade(old, new, method, narrate, facts=facts)
    if back:
        _go_back(upgrade)
    else:
        _go_on(upgrade)
    return True


def _refuse_serving(plan: Plan) -> None:
    reach = access.controlling(plan)
    if patroni.active() and not Patroni(reach).view().paused:
        raise HostError(
            "this replica's cluster is in use; it must not leave it", where=reach.cluster.scope,
            seen="automatic failover is on", allowed="a cluster whose primary upgrade.yml has moved to another major",
            run="provision cluster status",
        )  # fmt: skip


def _go_on(upgrade: Upgrade) -> None:
    """Leave the old cluster. The old data stays, sealed; what an earlier attempt left of the new one goes."""
    context.keep_old(upgrade)
    upgrade.facts = {"from": upgrade.old.major, "to": upgrade.new.major, "method": upgrade.method}
    upgrade.write(journal.STOPPED, part=journal.REPLICA)
    _stop(upgrade.old_plan, upgrade.old)
    side.stop(upgrade.new)
    transfer.empty(upgrade.new)
    context.publish(upgrade.new_plan)
    upgrade.write(journal.FINISHED)


def _go_back(upgrade: Upgrade) -> None:
    """Leave the new cluster. The old data goes, once the upgraded member serves its own: Patroni could start this one
    as primary, without what was written since. Raises HostError.
    """
    reach = access.controlling(upgrade.old_plan)
    seen = life.upgrading(Dcs.of(reach), reach.cluster.scope)
    if WENT_BACK not in seen:
        raise HostError(
            "the primary has not been rolled back yet", where=reach.cluster.scope, seen=seen or "no upgrade",
            run=commands.rollback(upgrade.new_plan, loses=True),
        )  # fmt: skip
    upgrade.write(journal.RETURNING)
    _stop(upgrade.new_plan, upgrade.new)
    side.put_back_configuration(upgrade.old, journal.FOLDER)
    if secure_path.about(upgrade.old.data) is not None:
        secure_path.remove_tree(upgrade.old.data)
    context.publish(upgrade.old_plan)
    upgrade.write(journal.ROLLED_BACK)


def _stop(plan: Plan, which: Side) -> None:
    """Stop Patroni and the server of a replica, and delete its key, which would count as a member until its ttl."""
    release(plan)
    side.stop(which)
    side.seal(which)
    patroni.drop_cache(plan)
    reach = access.controlling(plan)
    Dcs.of(reach, "patroni").delete(f"{life.members_key(reach.cluster.scope)}{reach.cluster.member}")


def forget(narrate: Narrate) -> bool:
    """Replace, on the upgraded member, the cluster of the other major in etcd, once no other member runs.

    False if that is done. Until then, site.yml is refused. Raises HostError.
    """
    plan, facts = load.load(), journal.read()
    ended = journal.state(facts) in (journal.FINISHED, journal.ROLLED_BACK)
    if facts.get("part") != journal.PRIMARY or not ended:
        return False
    own = apply.system_identifier(plan)
    found = origin.initialised(plan) != own
    if found:
        _replace(plan, own, narrate)
    if not patroni.active():
        patroni.drop_cache(plan)
    unmark(plan)
    journal.write(facts, **{journal.HANDED_OVER: True})
    return found


def _replace(plan: Plan, identifier: str, narrate: Narrate) -> None:
    """Delete the cluster, and name this host's database as that of the new one: Patroni refuses any other."""
    reach = access.controlling(plan)
    scope, own = reach.cluster.scope, reach.cluster.member
    narrate("wait until no member of the other cluster runs")
    wait(lambda: not set(life.records(Dcs.of(reach), scope)) - {own}, FORGET_S)
    if origin.initialised(plan):
        patroni.forget()  # refuses other members
    dcs = Dcs.of(reach, "patroni")
    dcs.put(orders.config_key(scope), json.dumps(dict(reach.cluster.dynamic)))
    dcs.put(orders.initialize_key(scope), identifier)
