"""The stages of an upgrade by logical replication, its way back, and its end. Does IO as root.

The old server serves while its rows are copied to the new one, which is closed (`closed`). The hand-over closes the old
server, waits until the new one has confirmed the last change, and opens the new one. From then on the old server is
closed and receives every change, so that the way back, the same hand-over in the other direction, loses nothing.

A slot of the new server is made before any client can write to it, and the forward subscriptions are dropped before:
changes travel in one direction only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from provision import system
from provision.errors import HostError, ProvisionError
from provision.host import rehearsal
from provision.host.upgrade import (
    after,
    check,
    commands,
    contents,
    context,
    demands,
    journal,
    pause,
    replication,
    side,
    transfer,
)
from provision.host.upgrade.closed import Server
from provision.host.upgrade.context import Upgrade
from provision.host.upgrade.sessions import session_of

MAKE, COPY, INDEX, FIRST, CATCH_UP, CLOSE, TAKE_OVER, OPEN, RETURN = (
    "make the new cluster with roles and schemas",
    "copy the rows",
    "build the indexes",
    "collect first statistics",
    "wait until the new server has caught up",
    "pause the pooler and close the old server",
    "take over the last changes",
    "open the new server and resume the pooler",
    "replicate back to the old server",
)
STAGES = (
    context.CHECK, MAKE, context.BACKUP, context.RECALL, COPY, INDEX, FIRST, context.VERIFY, CATCH_UP, CLOSE, TAKE_OVER,
    OPEN, RETURN, context.STATISTICS,
)  # fmt: skip
LAG_BYTES = 2**20
"""WAL that may be unconfirmed when the pooler pauses: a fraction of a second."""
POLL_S = 0.5


def rehearse(upgrade: Upgrade) -> None:
    """Start a scratch server with the new configuration and the old schemas. Raises HostError, DatabaseError."""
    contents.rehearse(upgrade.old_server, upgrade.new_server)


def make(upgrade: Upgrade) -> None:
    """Make the new cluster, start it closed, and load roles and schemas. Raises HostError, DatabaseError."""
    rehearsal.rehearse(upgrade.new.programs, upgrade.new.configuration)
    with session_of(upgrade.old_plan) as session:
        like = transfer.form(session)
    new = upgrade.new_server
    new.stop()
    replication.retire(upgrade.old_plan)  # of an earlier attempt
    transfer.make(upgrade.new, like, upgrade.work)
    _identify(upgrade)
    new.close(len(replication.filled(upgrade.old_plan)))
    contents.load(new, contents.dump(upgrade.old_server, upgrade.new.programs))


def _identify(upgrade: Upgrade) -> None:
    """Let tables without a key replicate, and keep what they had before in the journal first."""
    tables = demands.identities(upgrade.old_plan)
    for name, rows in upgrade.facts.get("identities", {}).items():  # of an earlier attempt
        tables[name] = [*rows, *tables.get(name, [])]
    upgrade.write(journal.CHECKED, identities=tables)
    demands.identify(upgrade.old_plan, tables)


def copy(upgrade: Upgrade) -> None:
    """Copy the rows and build the indexes while the old server serves. Raises HostError, DatabaseError."""
    old, new = upgrade.old_server, upgrade.new_server
    old.start()  # after a crash or a reboot; else it runs
    names = replication.filled(old.plan)
    upgrade.write(journal.COPYING, replicated=names)
    new.close(len(names))
    with upgrade.stage(COPY):
        for line in replication.writers(old.plan):
            upgrade.narrate(f"  waits for the end of {line}")
        replication.publish(old.plan, names)
        replication.subscribe(old.plan, new.here, names, copy=True)
        _follow(upgrade, names)
    with upgrade.stage(INDEX):
        shown = time.monotonic()
        for name in contents.build(old.plan, new.here):
            _room(upgrade)
            if time.monotonic() - shown >= replication.SHOW_S:
                upgrade.narrate(f"  {name}")
                shown = time.monotonic()
    with upgrade.stage(FIRST):
        after.first_statistics(new.here)
    with upgrade.stage(context.VERIFY):
        _unchanged(upgrade)
        if found := context.verify(upgrade, new.here):
            context.refuse(upgrade, found)
    with upgrade.stage(CATCH_UP):
        _settle(upgrade, old, new, _unchanged, _room)
        _unchanged(upgrade)  # what has changed since the verification
        _settle(upgrade, old, new, _unchanged, _room)


def _room(upgrade: Upgrade) -> None:
    """End a copy that would fill the disk, on which the old server could not write its WAL. Raises HostError."""
    place, free = check.free_mb(upgrade.new)
    if free >= check.LEAST_MB:
        return
    upgrade.new_server.stop()
    replication.retire(upgrade.old_plan)
    transfer.empty(upgrade.new)
    upgrade.write(journal.PREPARED)
    raise HostError(
        "the disk is nearly full: the copy was ended and deleted; the old server serves", where=str(place),
        seen=f"{free} MB are free", allowed=f"{check.LEAST_MB} MB during the copy",
        run="free some space, then repeat the command",
    )  # fmt: skip


def _follow(upgrade: Upgrade, names: list[str]) -> None:
    """Show the initial copy until every table is copied."""
    sizes, shown = replication.sizes(upgrade.old_plan, names), 0.0
    while True:
        here = upgrade.new_server.here
        percent, copied, tables = replication.progress(here, sizes)
        replication.behind(upgrade.old_plan)
        _room(upgrade)
        if copied == tables or time.monotonic() - shown >= replication.SHOW_S:
            errors = replication.errors(here)
            upgrade.narrate(f"  {percent} % of the bytes, {copied} of {tables} tables copied{errors}")
            if errors:
                _unchanged(upgrade)
            shown = time.monotonic()
        if copied == tables:
            return
        time.sleep(POLL_S)


def _unchanged(upgrade: Upgrade) -> None:
    """Raise HostError if the old server has other roles or schemas than were loaded, or what does not replicate."""
    found = contents.changed(upgrade.old_server, upgrade.new_server) + demands.left(upgrade.old_plan)
    if found:
        raise HostError(
            "roles or schemas have changed since the copy began", where=upgrade.old_plan.server.unit,
            seen="; ".join(found),
            allowed="no migration, no change of roles and no large objects during the copy; the old server serves",
            run=f"undo the change and repeat the command; or {commands.rollback(upgrade.new_plan)}, and begin again",
        )  # fmt: skip


def _settle(
    upgrade: Upgrade,
    source: Server,
    target: Server,
    cause: Callable[[Upgrade], None],
    watch: Callable[[Upgrade], None] = lambda _upgrade: None,
) -> None:
    """Wait until the target has nearly everything; `cause` raises the cause of an error that its log has."""

    def show(text: str, errors: str) -> None:
        upgrade.narrate(f"  {text}{errors}")
        watch(upgrade)
        if errors:
            cause(upgrade)

    replication.settle(source.here, target.here, most=LAG_BYTES, show=show)
    system.run("systemctl", "stop", *context.HELPERS, check=False)
    for server in (source, target):  # the restarts to come then end at once
        with session_of(server.here) as session:
            session.execute("CHECKPOINT")


def move(upgrade: Upgrade) -> None:
    """Hand over from the old server to the new one, while clients of the pooler wait. Raises HostError."""
    begun = time.monotonic()
    old, new = upgrade.old_server, upgrade.new_server
    with pause.paused(upgrade):
        if journal.state(upgrade.facts) != journal.STARTED:
            with context.or_back(lambda: back_to_old(upgrade)):
                for server in (old, new):  # after a reboot; else they run
                    server.start()
                with upgrade.stage(CLOSE):
                    _close(upgrade, old, journal.STOPPED, journal.TRANSFERRED)
                with upgrade.stage(TAKE_OVER):
                    _take_over(upgrade, old, new, journal.TRANSFERRED)
                    _reserve(upgrade)
        with upgrade.stage(OPEN):
            upgrade.write(journal.STARTED)
            context.publish(new.plan)
            try:
                new.open()
            except HostError as error:
                error.run = f"{error.run}; or {commands.rollback(new.plan)}, which loses nothing"
                raise
    down = round(time.monotonic() - begun, 1)
    systems = [*upgrade.facts.get("systems", []), after.identifier(new.plan)]
    upgrade.write(journal.SERVING, down_seconds=down, systems=systems)
    upgrade.narrate(f"clients of the pooler waited at most {down} s")


def _reserve(upgrade: Upgrade) -> None:
    """Keep every change of the new server for the old one, from before its first client on."""
    here = upgrade.new_server.here
    names = upgrade.facts["replicated"]
    wide = demands.wide(upgrade.old_server.here)
    upgrade.write(journal.TRANSFERRED, wide=wide)
    demands.identify(here, wide)
    replication.publish(here, names)
    replication.reserve(here, names)


def finish(upgrade: Upgrade) -> None:
    """Begin to replicate every change back to the old server. Raises HostError, DatabaseError."""
    with upgrade.stage(RETURN):
        _replicate_back(upgrade)


def _replicate_back(upgrade: Upgrade) -> None:
    old, new = upgrade.old_server, upgrade.new_server
    names = upgrade.facts["replicated"]
    old.close(len(names))
    replication.subscribe(new.here, old.here, names, copy=False)
    replication.redirect(new.here, old.here)


def _close(upgrade: Upgrade, source: Server, state: str, later: str) -> None:
    """Close a server that serves, unless it has been handed over already."""
    if journal.state(upgrade.facts) == later:
        return
    upgrade.write(state)
    source.close(len(upgrade.facts["replicated"]))


def _take_over(upgrade: Upgrade, source: Server, target: Server, state: str) -> None:
    """Let the target receive all that the closed source has, compare both, and end the replication.

    The state says that the target has everything. Raises HostError.
    """
    if journal.state(upgrade.facts) != state:
        replication.redirect(source.here, target.here)
        replication.confirmed(source.here, upgrade.facts["replicated"])
        found, left = demands.left(source.here, prepared=True) + contents.differences(source.here, target.here), 0
        if not found:
            contents.copy_sequences(source.here, target.here)
            found, left = contents.count(source.here, target.here)
        if found:
            raise HostError(
                "the two servers differ", where=str(target.side.data), seen="; ".join(found),
                run="provision upgrade status",
            )  # fmt: skip
        if left:
            upgrade.narrate(f"  the rows of {left} large tables were not counted")
        upgrade.write(state, uncounted=left)
    replication.unsubscribe(target.here)
    replication.retire(source.here)


def back_to_old(upgrade: Upgrade) -> None:
    """Open the old server again, which has every row, and go on replicating to the new one. Raises HostError."""
    old, new = upgrade.old_server, upgrade.new_server
    old.open()
    if journal.state(upgrade.facts) == journal.TRANSFERRED:  # the subscriptions are gone: everything begins again
        upgrade.write(journal.PREPARED)
        return
    replication.redirect(old.here, new.here)
    upgrade.write(journal.COPYING)


def keep(upgrade: Upgrade) -> None:
    """Put back the old server's files, which the run with the new major removes, and start it. Raises HostError."""
    side.put_back_configuration(upgrade.old, journal.FOLDER)
    upgrade.old_server.start()


def back(upgrade: Upgrade, served: bool) -> None:
    """Return to the old server: with every change, if the new one has served. Raises HostError."""
    old, new = upgrade.old_server, upgrade.new_server
    side.put_back_configuration(upgrade.old, journal.FOLDER)
    if not served:
        new.stop()
        with pause.paused(upgrade):
            old.open()
        replication.retire(old.plan)
        _end(upgrade, old, new)
        return
    if journal.state(upgrade.facts) != journal.RETURNED:
        _start_both(upgrade)
        _settle(upgrade, new, old, _same)
    with pause.paused(upgrade):
        _return(upgrade)
    _end(upgrade, old, new)


def _start_both(upgrade: Upgrade) -> None:
    """Start what does not run, and replicate back where a kill has come before it."""
    new = upgrade.new_server
    try:
        new.start()
    except HostError:  # with its own settings it may never have started; closed it has
        new.close(len(upgrade.facts["replicated"]))
    _replicate_back(upgrade)
    _same(upgrade)


def _same(upgrade: Upgrade) -> None:
    """Raise HostError if the new server has contents that the old one cannot receive."""
    old, new = upgrade.old_server, upgrade.new_server
    if found := demands.left(new.here) + contents.differences(new.here, old.here):
        raise HostError(
            "the old server cannot take everything that the new one has",
            where=new.plan.server.unit, seen="; ".join(found),
            allowed="the same tables on both servers, and no large objects or rows of unlogged tables",
            run="undo the change (provision migrate down) or delete those, then repeat the command",
        )  # fmt: skip


def _return(upgrade: Upgrade) -> None:
    old, new = upgrade.old_server, upgrade.new_server
    before = journal.state(upgrade.facts)
    for server in (old, new):  # after a reboot; else they run
        server.start()
    try:
        _close(upgrade, new, journal.RETURNING, journal.RETURNED)
        _take_over(upgrade, new, old, journal.RETURNED)
    except BaseException as error:
        said = f"no server serves: repeat {commands.rollback(new.plan)}"
        if journal.state(upgrade.facts) != journal.RETURNED:
            new.open()
            replication.redirect(new.here, old.here)
            upgrade.write(journal.SERVING if before == journal.RETURNING else before)
            said = "the new server serves again"
        if isinstance(error, ProvisionError):
            error.run = f"{error.run}; {said}"
        raise
    context.publish(old.plan)
    old.open()


def _end(upgrade: Upgrade, old: Server, new: Server) -> None:
    """Leave the old server as it was before the upgrade, and the new one stopped."""
    demands.restore(old.plan, upgrade.facts.get("identities", {}))
    new.stop()
    side.seal(new.side)


def release(upgrade: Upgrade, kept: Server, gone: Server) -> None:
    """End the replication before the cluster that no longer serves is deleted. Raises HostError, DatabaseError."""
    gone.stop()
    if gone.side.configuration.exists():  # else a killed release has deleted it
        side.seal(gone.side)
    replication.retire(kept.plan)
    for tables in ("wide", "identities"):
        demands.restore(kept.plan, upgrade.facts.get(tables, {}))
