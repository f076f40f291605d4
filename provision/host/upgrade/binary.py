"""The stages of pg_upgrade, with its methods copy and link. Does IO as root.

The old server serves until it is stopped; no transaction runs through the pooler from then on to the verification of
the new server. A failure before the new server starts goes back to the old one.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from provision import system
from provision.errors import HostError
from provision.host.server import patroni
from provision.host.upgrade import after, commands, contents, context, journal, members, pause, side, transfer
from provision.host.upgrade.closed import Server
from provision.host.upgrade.context import Upgrade
from provision.host.upgrade.sessions import session_of

MAKE, STOP, MOVE, START, FIRST, EXTEND, RESUME = (
    "make the new cluster and run pg_upgrade --check",
    "pause the pooler and stop the old server",
    "run pg_upgrade",
    "start the new server",
    "collect first statistics",
    "update extensions",
    "resume the pooler",
)
CLEAN = "shut down at"
"""How `side.checkpoint` describes a cluster that was shut down."""
STAGES = (
    context.CHECK, MAKE, context.BACKUP, context.RECALL, STOP, MOVE, START, FIRST, EXTEND, context.VERIFY, RESUME,
    context.STATISTICS,
)  # fmt: skip


def rehearse(upgrade: Upgrade) -> None:
    """Start a scratch server with the new configuration and the old schemas; run pg_upgrade --check.

    Raises HostError, DatabaseError.
    """
    with session_of(upgrade.old_plan) as session:
        like = transfer.form(session)
    patroni.restore_configuration(upgrade.new_plan)  # of an upgrade that went back
    contents.rehearse(upgrade.old_server, upgrade.new_server)
    side.end_strays(upgrade.work)
    side.stop(upgrade.new)
    transfer.make(upgrade.new, like, upgrade.work)
    upgrade.made = True
    context.refuse(upgrade, transfer.check(upgrade.old, upgrade.new, upgrade.work))
    upgrade.facts["form"] = asdict(like)


def move(upgrade: Upgrade) -> None:
    """Stop the old server, move its data, start the new one and verify it, while clients of the pooler wait."""
    begun = time.monotonic()
    with pause.paused(upgrade):
        if journal.state(upgrade.facts) not in journal.NEW_SERVES:
            with context.or_back(lambda: back_to_old(upgrade)):
                _stop(upgrade)
                _transfer(upgrade)
        _start(upgrade)
        with upgrade.stage(FIRST):
            if not after.moved(upgrade.new_plan):
                after.first_statistics(upgrade.new_plan)
        with upgrade.stage(EXTEND):
            updated = after.update_extensions(upgrade.new_plan)
        with upgrade.stage(context.VERIFY):
            _verify(upgrade)
    down = round(time.monotonic() - begun, 1)
    with upgrade.stage(RESUME):
        systems = [*upgrade.facts.get("systems", []), after.identifier(upgrade.new_plan)]
        upgrade.write(journal.SERVING, updated=updated, down_seconds=down, systems=systems)
    upgrade.narrate(f"clients of the pooler waited at most {down} s")


def _stop(upgrade: Upgrade) -> None:
    upgrade.write(journal.STOPPED)
    with upgrade.stage(STOP):
        side.end_strays(upgrade.work)
        system.run("systemctl", "stop", *context.HELPERS, check=False)
        side.stop(upgrade.new)
        if upgrade.old.linked:  # a killed pg_upgrade --link
            side.unseal(upgrade.old)
        members.release(upgrade.old_plan)
        side.stop(upgrade.old)
        if not side.checkpoint(upgrade.old).startswith(CLEAN):
            upgrade.old_server.start()  # it was killed: its start recovers
            side.stop(upgrade.old)
        side.seal(upgrade.old)
        seen = side.checkpoint(upgrade.old)
        if not seen.startswith(CLEAN):
            raise HostError("the old server did not shut down cleanly", where=str(upgrade.old.data), seen=seen)


def _transfer(upgrade: Upgrade) -> None:
    with upgrade.stage(MOVE):
        if not upgrade.made:  # after a kill; clients wait meanwhile
            transfer.make(upgrade.new, transfer.of_facts(upgrade.facts["form"]), upgrade.work)
        upgrade.made = False
        transfer.transfer(upgrade.old, upgrade.new, upgrade.work, upgrade.method, upgrade.new_plan.host.cpus)
        # Not that of the stop: pg_upgrade starts the old server, too.
        upgrade.write(journal.TRANSFERRED, checkpoint=side.checkpoint(upgrade.old))


def back_to_old(upgrade: Upgrade) -> None:
    """Start the old server again, whatever pg_upgrade did: nothing has changed its data. Raises HostError."""
    _clear(upgrade)
    _serve(upgrade, upgrade.old_server)
    upgrade.write(journal.PREPARED)


def _serve(upgrade: Upgrade, server: Server) -> None:
    """Start a server, under Patroni where its cluster is in etcd. Raises HostError."""
    side.relink(server.side)
    if not members.serve(server.plan, server.side, upgrade.narrate):
        patroni.restore_configuration(server.plan)
        server.start()


def _clear(upgrade: Upgrade, *, down: bool = True) -> None:
    """Stop what pg_upgrade has started, and delete what it has copied: the old server may need the space to start.

    `down` says that the old server does not serve: one that runs is pg_upgrade's, with a socket of its own.
    """
    side.end_strays(upgrade.work)
    for each in (upgrade.new, *([upgrade.old] if down else [])):
        side.stop(each)
    transfer.empty(upgrade.new)
    side.seal(upgrade.new)


def _start(upgrade: Upgrade) -> None:
    """Start the new server. From here on it is the database: the old data cannot be started any more."""
    with upgrade.stage(START):
        first = journal.state(upgrade.facts) == journal.TRANSFERRED  # else it may have served, and has data of its own
        before = side.checkpoint(upgrade.new) if first else ""
        side.seal(upgrade.old, control=upgrade.method == "link")
        upgrade.write(journal.STARTED)
        context.publish(upgrade.new_plan)
        try:
            upgrade.new_server.start()
        except HostError as error:
            # A server that has accepted clients, and then died, has written its state into pg_control before.
            served = upgrade.new.running or side.checkpoint(upgrade.new) != before
            if first and upgrade.method == "copy" and not served:
                context.publish(upgrade.old_plan)
                back_to_old(upgrade)
                error.run = f"{error.run}; the old server serves again"
            raise


def _verify(upgrade: Upgrade) -> None:
    """Compare the new server with what the old one had. Raises HostError; the new server keeps running."""
    plan = upgrade.new_plan
    if found := context.verify(upgrade, plan):
        raise HostError(
            "the new server serves, but differs from the old one",
            where=plan.server.unit, seen="; ".join(found),
            run=f"fix it, then {commands.again(plan, plan.server.major, upgrade.method)}"
            + (f"; or {commands.rollback(plan, loses=True)}" if upgrade.method == "copy" else ""),
        )  # fmt: skip


def back(upgrade: Upgrade, served: bool) -> None:
    """Start the old server again; what the new one has written is lost. Raises HostError.

    From RETURNING on, only a rollback continues: both servers are stopped, or the old one takes writes.
    """
    state = journal.state(upgrade.facts)
    if served and state != journal.RETURNING:
        _unchanged(upgrade)
    with pause.paused(upgrade):
        side.end_strays(upgrade.work)
        side.put_back_configuration(upgrade.old, journal.FOLDER)
        system.run("systemctl", "stop", *context.HELPERS, check=False)
        if served:
            _return(upgrade, state)
            return
        _clear(upgrade, down=state in journal.DOWN)
        _serve(upgrade, upgrade.old_server)


def _return(upgrade: Upgrade, before: str) -> None:
    """Start the old server instead of the new one, or the new one again if it does not start. Raises HostError."""
    upgrade.write(journal.RETURNING)
    members.release(upgrade.new_plan)
    side.stop(upgrade.new)
    side.seal(upgrade.new)
    context.publish(upgrade.old_plan)
    try:
        _serve(upgrade, upgrade.old_server)
    except HostError as error:
        if before != journal.RETURNING and not upgrade.old.running:
            side.seal(upgrade.old)
            context.publish(upgrade.new_plan)
            _serve(upgrade, upgrade.new_server)
            upgrade.write(before)
            error.run = f"{error.run}; the new server serves again"
        raise


def _unchanged(upgrade: Upgrade) -> None:
    """Raise HostError if the old data changed since it was copied."""
    seen, expected = side.checkpoint(upgrade.old), str(upgrade.facts.get("checkpoint"))
    if seen != expected:
        raise HostError(
            "the old data changed after it was copied: no rollback is possible",
            where=str(upgrade.old.data),
            seen=seen,
            allowed=expected,
        )
