"""Restore the whole cluster to a point in time: in place, or beside the original on another port.

Does IO as root. In place: the server is stopped, its data directory is moved aside (or reused with `delta`), the set is
restored as a standby, recovery is monitored to its end, and then the server is promoted. Never deletes data that it did
not restore, and never lets a copy archive into the original's repository. A journal in /var/lib/provision lets the same
command resume a killed restore and keeps backups away meanwhile.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from provision import secure_path, system
from provision.database import connect_pinned
from provision.errors import HostError, ProvisionError, UsageError
from provision.host.backup import copies, journal, members, recovery, runner, tool, wal
from provision.host.backup.drill import restore as restore_beside
from provision.host.backup.recovery import systemctl
from provision.host.backup.request import Prepared, Request, cluster_of
from provision.host.backup.tool import BackupError
from provision.host.pooler import console
from provision.plan.schema import Plan

PAUSE_S = 10  # how long open transactions may take before the server is stopped
POINT = re.compile(r"name:[A-Za-z0-9_.-]+-\d{8}T\d{6}Z")
"""A restore point of a fleet, whose name ends with its time (host.fleet.points)."""
HELPERS = ("provision-backup@*.service", "provision-drill.service")  # units that use the data directory


def run(plan: Plan, prepared: Prepared, narrate: Callable[[str], None]) -> dict[str, Any]:
    """Restore and return the result. Raises UsageError without confirmation, BackupError if a stage fails.

    In place, the host's pooler is paused meanwhile, so that clients wait instead of reaching a server in recovery.
    """
    _confirm(plan, prepared.request)
    with journal.held(prepared.journal, "another restore is running on this host"):
        try:
            with nullcontext() if prepared.request.beside else _pooler_paused(narrate):
                return _run(plan, prepared, narrate)
        except ProvisionError as error:
            aside = journal.read(prepared.journal).get("aside")
            error.run = f"{error.run}; " if error.run else ""
            error.run += "repeat the command to resume"
            error.run += f"; the old data is in {aside}" if aside else ""
            raise


@contextmanager
def _pooler_paused(narrate: Callable[[str], None]) -> Iterator[None]:
    paused = console.pause(PAUSE_S, 0)
    if paused.pooler:
        narrate("the pooler is paused")
    try:
        yield
    finally:
        if paused.pooler and console.resume():
            narrate("the pooler has resumed")


def _run(plan: Plan, prepared: Prepared, narrate: Callable[[str], None]) -> dict[str, Any]:
    request, target, window = prepared.request, prepared.target, prepared.window
    begun = time.time()
    stanza = request.stanza or plan.backup.stanza
    data = copies.data(request.beside) if request.beside else plan.server.data
    aside = _clear(plan, request, data, prepared.resumed, narrate)
    facts: dict[str, Any] = {
        "when": system.stamp(begun), "stanza": stanza, "repository": prepared.repository.place, "set": window.set.label,
        "target": str(target), "aside": aside,
        "beside": request.beside, "raised": [],
    }  # fmt: skip
    journal.write(prepared.journal, {**facts, "state": journal.RESTORING}, data)
    narrate(f"restoring {window.set.label} from {prepared.repository.place} into {data}")
    extra = window.options + (["--delta"] if prepared.resumed or request.delta else [])
    if request.beside:
        extra.append(f"--tablespace-map-all={copies.tablespaces(request.beside)}")
    if request.beside or request.stanza:
        # Also for another host's stanza: its archive is read by name and never written.
        restore_beside(stanza, prepared.repository.number, window.set.label, data, target, *extra)
        if not request.beside:  # it will archive into this host's own stanza
            tool.clear_spool(plan.backup.stanza)
    else:
        options = {**target.options, "wal_retrieve_retry_interval": "500ms"}
        tool.program(
            stanza, f"--repo={prepared.repository.number}", f"--set={window.set.label}", "--type=standby",
            *(f"--recovery-option={name}={value}" for name, value in options.items()), *extra, "restore",
        )  # fmt: skip
    restored = time.time()
    if request.beside:
        copies.configure(plan, request.beside)
    else:
        facts["raised"] = recovery.raise_limits(plan.server.programs, plan.server.configuration, data)
    facts = journal.write(prepared.journal, {**facts, "state": journal.REPLAYING}, data)
    narrate(f"replaying to {target}")
    server, port = runner.of(plan, request.beside), request.beside or plan.server.port
    log = recovery.Log(server.log)
    url = plan.server.url("postgres", port=port)
    server.start()
    end = recovery.await_target(url, target, window.reached, log, narrate)
    facts |= {
        "state": journal.PAUSED if end.paused else journal.CAUGHT_UP, "timeline": end.timeline,
        "replayed_to": wal.text(end.lsn), "archive_ends_at": wal.text(window.reached.end),
        "last_transaction": end.last_transaction or "none after the backup", "port": port,
    }  # fmt: skip
    if request.action == "promote":
        facts |= _promote(plan, prepared.journal, facts, data, narrate)
    facts |= {
        "restore_seconds": round(restored - begun, 1), "seconds": round(time.time() - begun, 1),
        "checked": _check(plan, port), "stages": prepared.stages, "next": _next(plan, request, aside),
    }  # fmt: skip
    return journal.write(prepared.journal, {**facts, "finished": system.stamp()}, data)


def promote(plan: Plan, beside: int, narrate: Callable[[str], None]) -> dict[str, Any]:
    """Promote a restore that was left read-only or killed during promotion. Raises HostError, BackupError."""
    name = journal.COPY if beside else journal.IN_PLACE
    data = copies.data(beside) if beside else plan.server.data
    with journal.held(name, "another restore is running on this host"):
        state = journal.state(name, data)
        if state not in (journal.PAUSED, journal.CAUGHT_UP, journal.PROMOTING):
            raise HostError(
                "no restore is waiting for promotion",
                where=str(data), seen=state or "no unfinished restore of this directory",
                allowed="a restore that was left read-only (-e restore_action=pause)", run="provision restore plan",
            )  # fmt: skip
        facts = journal.read(name)
        runner.of(plan, beside).start()
        facts |= _promote(plan, name, facts, data, narrate)
        facts |= {"checked": _check(plan, int(facts["port"])), "finished": system.stamp()}
        facts["next"] = _next(plan, Request(beside=beside, stanza=_foreign(plan, facts)), str(facts.get("aside") or ""))
        return journal.write(name, facts, data)


def _foreign(plan: Plan, facts: dict[str, Any]) -> str:
    return str(facts["stanza"]) if facts["stanza"] != plan.backup.stanza else ""


def _promote(
    plan: Plan, name: str, facts: dict[str, Any], data: Path, narrate: Callable[[str], None]
) -> dict[str, Any]:
    """End recovery; can be repeated after a kill. Return the new state and timeline."""
    beside, port = bool(facts["beside"]), int(facts["port"])
    server = runner.of(plan, port if beside else 0)
    url = plan.server.url("postgres", port=port)
    facts = journal.write(name, {**facts, "state": journal.PROMOTING}, data)
    if recovery.recovering(url):
        if facts["target"] != "latest" and not recovery.paused(url):
            # No transaction came after the target, so recovery did not pause. A server with an unreached target refuses
            # promotion, so its target is reset; the timeline setting stays, or it would follow a newer timeline.
            narrate("all archived WAL is replayed")
            recovery.forget(url, recovery.POINTS)
            server.stop()
            server.start()
            recovery.await_position(url, str(facts["replayed_to"]))
        recovery.promote(url)
    # These settings need a restart; without it every later reload would report them as pending. A cluster from another
    # host's stanza archives into this host's own stanza again, which refuses it until `provision backup prepare`.
    archive = () if beside or not _foreign(plan, facts) else ("archive_mode",)
    recovery.forget(url, (*recovery.TARGETS, "restore_command", *facts.get("raised", []), *archive))
    if cluster_of(plan, int(facts["beside"])):
        members.attach(plan, narrate)  # which restarts it, too
    else:
        server.stop()
        server.start()
        recovery.await_answer(url)
    timeline, identifier = recovery.identity(url)
    ended = {"state": journal.PROMOTED, "timeline": timeline, "system": identifier}
    journal.write(name, {**facts, **ended}, data)  # before the backup starts, which checks the journal
    if not beside and not archive:
        # A backup on the new timeline, with reference counts for the next restore test.
        systemctl("start", "--no-block", "provision-backup@incr.service")
    return ended


def confirmation(plan: Plan) -> str:
    """Return the word that confirms a restore in place: the fleet's name, the cluster's, or this host's."""
    if plan.fleet:
        return plan.fleet.name
    return plan.cluster.scope if plan.cluster and plan.server.patroni else os.uname().nodename


def _confirm(plan: Plan, request: Request) -> None:
    if request.beside:
        return
    host, word = os.uname().nodename, confirmation(plan)
    if request.confirm != word:
        raise UsageError(
            f"a restore in place replaces {'every member' if plan.server.patroni else 'this host'}'s data and must be "
            "confirmed",
            where=host, seen=repr(request.confirm), allowed=f"-e restore_confirm={word}",
        )  # fmt: skip
    if plan.fleet and not POINT.fullmatch(request.target):
        raise UsageError(
            "a fleet is restored to a restore point that every group has",
            where=host, seen=f"target {request.target}", allowed="name:POINT, as provision fleet point printed it",
        )  # fmt: skip
    if request.delta and request.confirm_delta != "overwrite":
        raise UsageError(
            "restore_mode=delta overwrites the data directory; no copy is kept",
            where=host, seen=repr(request.confirm_delta), allowed="-e restore_confirm_delta=overwrite",
            run="omit restore_mode to keep the old data",
        )  # fmt: skip


def _clear(plan: Plan, request: Request, data: Path, resumed: str, narrate: Callable[[str], None]) -> str:
    """Stop the server and prepare the directory. Return the path of the old data, '' if there is none."""
    if request.beside:
        if resumed:
            runner.of(plan, request.beside).stop()
        _own(data)
        _own(copies.tablespaces(request.beside))
        return ""
    systemctl("stop", *HELPERS)
    if plan.server.patroni:
        members.detach(plan, narrate)
    narrate("stopping the server")
    runner.of(plan).stop()
    if (data / "postmaster.pid").exists() and _alive(data):
        raise BackupError("the server did not stop", where=str(data / "postmaster.pid"))
    if resumed:
        return str(journal.read(journal.IN_PLACE).get("aside") or "")
    if request.delta:
        _own(data)
        return ""
    aside = ""
    if data.exists() and any(data.iterdir()):
        aside = str(secure_path.rename(data, f"{data.name}.before-{system.compact()}"))
        narrate(f"the old data is kept in {aside}")
    _own(data)
    return aside


def _alive(data: Path) -> bool:
    try:
        os.kill(int(secure_path.text(data / "postmaster.pid").split()[0]), 0)
    except (OSError, ValueError, IndexError):
        return False
    return True


def _own(data: Path) -> None:
    owner = pwd.getpwnam(system.POSTGRES)
    secure_path.make_directory(data, 0o700, (owner.pw_uid, owner.pw_gid))


def _check(plan: Plan, port: int) -> str:
    """Query the restored database and describe it."""
    with (
        system.as_user(),
        connect_pinned(plan.server.url("postgres", port=port), application="provision restore") as session,
    ):
        there = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", (plan.access.database,)).fetchone()
        mode = session.execute("SHOW archive_mode").fetchone()
    assert mode is not None  # noqa: S101 - the setting exists
    if there is None:
        return f"database {plan.access.database} did not exist at that time; archive_mode {mode[0]}"
    with (
        system.as_user(),
        connect_pinned(plan.server.url(plan.access.database, port=port), application="provision restore") as session,
    ):
        row = session.execute(
            "SELECT count(*), (SELECT string_agg(extname || ' ' || extversion, ', ' ORDER BY 1) FROM pg_extension)"
            " FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate returns a row
    return f"{plan.access.database} answers: {row[0]} tables, {row[1]}; archive_mode {mode[0]}"


def _next(plan: Plan, request: Request, aside: str) -> list[str]:
    found = []
    if request.action == "pause":
        which = f" --beside {request.beside}" if request.beside else ""
        found.append(f"provision restore promote{which} to end recovery here; or restore to another target")
    if request.beside:
        found.append(
            f"when it is no longer needed: pg_dropcluster --stop {plan.server.major} {copies.name(request.beside)};"
            f" rm -rf {copies.tablespaces(request.beside)}"
        )
    elif request.action == "promote" and not request.stanza:
        found.append("an incremental backup of the new timeline is running: provision backup status")
    if request.stanza and not request.beside:
        found.append("provision backup prepare, to archive into this host's own stanza")
    if aside:
        found.append(f"provision restore release --confirm {os.uname().nodename} removes {aside}")
    return found


def release(plan: Plan, confirm: str) -> list[str]:
    """Remove the data directories that restores moved aside. Raises UsageError, or HostError during a restore."""
    found = sorted(plan.server.data.parent.glob(f"{plan.server.data.name}.before-*Z"))
    host = os.uname().nodename
    if found and confirm != host:
        raise UsageError(
            "this removes the data from before the restore and must be confirmed",
            where=", ".join(map(str, found)),
            allowed=f"--confirm {host}",
        )
    if found and (seen := journal.unfinished(plan.server.data)):
        raise HostError(
            "a restore has not finished; the old data may still be needed",
            where=str(found[-1]), seen=seen, run="repeat provision restore run, or provision restore promote",
        )  # fmt: skip
    for path in found:
        secure_path.remove_tree(path)
    return [str(path) for path in found]
