"""Bring the whole cluster back to a moment: in place, or beside the original on another port.

Does IO as root. In place: the server is stopped, its data directory is moved aside (or with `delta` reused), the set is
restored as a standby, recovery is watched to its very end, and only then is the server promoted. Never deletes data
that it did not restore itself, and never lets a copy archive into the original's repository. A journal in
/var/lib/provision lets a run that was killed be run again, and lets nothing else touch the data meanwhile.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import HostError, ProvisionError, UsageError
from provision.host.backup import copies, journal, recovery, show, targets, tool, wal
from provision.host.backup.catalogue import Catalogue
from provision.host.backup.drill import restore as restore_beside
from provision.host.backup.recovery import systemctl
from provision.host.backup.targets import Target, Window
from provision.host.backup.tool import BackupError
from provision.host.pooler import console
from provision.plan.schema import Plan

ARCHIVE_WAIT_S = 60
PAUSE_S = 10  # for transactions to end before the server is stopped under them
SPARE = 1.1  # a restore needs the set's size and some WAL
HELPERS = ("provision-backup@*.service", "provision-drill.service")  # what works with the server's data beside it


@dataclass(frozen=True)
class Request:
    """What was asked for. `beside` is the port of a copy, 0 is in place; `stanza` is another host's, '' our own."""

    target: str = "latest"
    set: str = ""
    stanza: str = ""
    timeline: int = 0
    delta: bool = False
    beside: int = 0
    action: str = "promote"
    confirm: str = ""
    confirm_delta: str = ""


@dataclass(frozen=True)
class Prepared:
    """What will be done: the window, and each stage as a sentence."""

    request: Request
    target: Target
    window: Window
    stages: tuple[str, ...]
    resumed: str

    @property
    def journal(self) -> str:
        """The name of its journal, and of its lock."""
        return journal.COPY if self.request.beside else journal.IN_PLACE


def prepare(plan: Plan, request: Request) -> Prepared:
    """Judge a request against the repository and this host; changes nothing but that the server archives what it has.

    Raises UsageError, HostError and BackupError.
    """
    tool.need_physical(plan)
    target = targets.parse(request.target)
    if request.delta and request.beside:
        raise UsageError(
            "a copy beside has no data directory to reuse", seen="mode delta with a port", allowed="one of them"
        )
    _pgvector(plan)
    data = copies.data(request.beside) if request.beside else plan.server.data
    resumed = journal.state(journal.COPY if request.beside else journal.IN_PLACE, data)
    if resumed == journal.PROMOTING:
        raise HostError(
            "an earlier restore was killed when its promotion had begun: the server may hold new data",
            where=str(data), run="provision restore promote, which ends it; then this again",
        )  # fmt: skip
    if request.beside:
        if not resumed:
            copies.free_port(request.beside)
        if data.exists() and any(data.iterdir()) and not resumed:
            raise HostError(
                "the directory of the copy is not empty", where=str(data), allowed="another port, or an empty directory"
            )
    elif not request.delta and not resumed:
        _movable(data)
    flushed = "" if request.stanza else _flush(plan)
    catalogue = Catalogue.read(plan, request.stanza, request.timeline)
    stanza = catalogue.repository.stanza
    version = catalogue.repository.majors[catalogue.repository.current]
    if version != str(plan.server.major):
        raise HostError(
            "this backup is of another major of PostgreSQL",
            where=f"stanza {stanza}", seen=f"the backup is of {version}, this host has {plan.server.major}",
            allowed=f"a host with PostgreSQL {version}", run="docs/move-to-another-major.md",
        )  # fmt: skip
    window = catalogue.choose(target, request.set)
    if target.kind == "latest" and flushed and not request.timeline and not catalogue.holds(flushed):
        raise UsageError(
            "the latest cannot be reached: WAL was given up, and the server has what it held",
            where=flushed, seen="it left the server and is not in the archive", allowed=str(window),
            run=f"provision backup take --type full; or --target lsn:{wal.text(window.reached.end)}, without it",
        )  # fmt: skip
    if not (request.beside or request.delta or resumed):
        _tablespaces_free(stanza, window.set.label)
    need = 0 if request.delta or resumed else int(window.set.size * SPARE)
    # The original serves on beside a copy: it needs room for its own WAL.
    spare = tool.reserve(data) if request.beside else 0
    if tool.free_bytes(data) - spare < need:
        raise HostError(
            "there is too little space for the restored data beside what is there",
            where=str(data.parent), seen=f"{show.size(tool.free_bytes(data))} free",
            allowed=f"{show.size(need)}" + (f", and {show.size(spare)} for the original" if spare else ""),
            run="make room" + ("" if request.beside else ", or -e restore_mode=delta, which reuses the data directory"),
        )  # fmt: skip
    return Prepared(request, target, window, tuple(_stages(plan, request, target, window, data, resumed)), resumed)


def _movable(data: Path) -> None:
    """Raise HostError for a data directory that cannot be moved aside."""
    if data.is_symlink() or data.is_mount():
        raise HostError(
            "the data directory cannot be moved aside",
            where=str(data), seen="a symbolic link" if data.is_symlink() else "a file system of its own",
            allowed="a plain directory", run="-e restore_mode=delta, which reuses it",
        )  # fmt: skip


def _tablespaces_free(stanza: str, label: str) -> None:
    """Raise HostError where a tablespace of the set is in use: its files are not moved aside."""
    for name, place in tool.tablespaces(stanza, label).items():
        if Path(place).is_dir() and any(Path(place).iterdir()):
            raise HostError(
                "the directory of a tablespace is not empty, and it is not moved aside", where=f"{name}: {place}",
                allowed="an empty directory", run="move its contents away yourself, or -e restore_mode=delta",
            )  # fmt: skip


def _stages(plan: Plan, request: Request, target: Target, window: Window, data: Path, resumed: str) -> list[str]:
    ends = "promote it, which begins a new timeline" if request.action == "promote" else "leave it paused, read-only"
    killed = resumed in (journal.RESTORING, journal.REPLAYING)
    reuse = f"{'go on with the restore that was killed' if killed else 'reuse what an earlier restore left'}, in {data}"
    if request.beside:
        cluster = f"{plan.server.major}/{copies.name(request.beside)}"
        made = f"make cluster {cluster} on port {request.beside}, {data}; it archives nothing"
        begin = [reuse if resumed else made]
    else:
        aside = "reuse what is right of" if request.delta else "move aside and keep"
        begin = [
            f"stop {plan.server.unit}: every connection ends; backups and drills that run are stopped",
            reuse if resumed else f"{aside} {data}",
        ]
    return [
        *begin,
        f"restore set {window.set.label} ({show.size(window.set.size)}) from {plan.backup.repository.place}",
        f"replay WAL to {target}; reachable: {window}",
        ends,
        "check the end of recovery against the archive's, and that the database answers",
    ]


def run(plan: Plan, prepared: Prepared, narrate: Callable[[str], None]) -> dict[str, Any]:
    """Do it; give what became of it. Raises UsageError without the confirmation, BackupError when it did not work.

    In place, the pooler of the host keeps its clients away meanwhile: they would else meet a server that replays.
    """
    _confirm(prepared.request)
    with journal.held(prepared.journal, "another restore runs on this host"):
        try:
            with nullcontext() if prepared.request.beside else _pooler_paused(narrate):
                return _run(plan, prepared, narrate)
        except ProvisionError as error:
            aside = journal.read(prepared.journal).get("aside")
            error.run = f"{error.run}; " if error.run else ""
            error.run += "the same again goes on where this stopped"
            error.run += f"; the data from before is in {aside}" if aside else ""
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
            narrate("the pooler serves again")


def _run(plan: Plan, prepared: Prepared, narrate: Callable[[str], None]) -> dict[str, Any]:
    request, target, window = prepared.request, prepared.target, prepared.window
    begun = time.time()
    stanza = request.stanza or plan.backup.stanza
    data = copies.data(request.beside) if request.beside else plan.server.data
    aside = _clear(plan, request, data, prepared.resumed, narrate)
    facts: dict[str, Any] = {
        "when": system.stamp(begun), "stanza": stanza, "set": window.set.label, "target": str(target), "aside": aside,
        "beside": request.beside, "raised": [],
    }  # fmt: skip
    journal.write(prepared.journal, {**facts, "state": journal.RESTORING}, data)
    narrate(f"restoring {window.set.label} into {data}")
    extra = window.options + (["--delta"] if prepared.resumed or request.delta else [])
    if request.beside:
        extra.append(f"--tablespace-map-all={copies.tablespaces(request.beside)}")
    if request.beside or request.stanza:
        # Of another host's stanza, too: its archive is read by name, and nothing is ever pushed into it.
        restore_beside(stanza, window.set.label, data, target, *extra)
    else:
        options = {**target.options, "wal_retrieve_retry_interval": "500ms"}
        tool.program(
            stanza, f"--set={window.set.label}", "--type=standby",
            *(f"--recovery-option={name}={value}" for name, value in options.items()), *extra, "restore",
        )  # fmt: skip
    restored = time.time()
    if request.beside:
        copies.configure(plan, request.beside)
    else:
        facts["raised"] = recovery.raise_limits(plan.server.programs, plan.server.configuration, data)
    facts = journal.write(prepared.journal, {**facts, "state": journal.REPLAYING}, data)
    narrate(f"replaying to {target}")
    port, unit = (
        (request.beside, copies.unit(plan, request.beside)) if request.beside else (plan.server.port, plan.server.unit)
    )
    log = recovery.Log(Path(f"/var/log/postgresql/{unit.removeprefix('postgresql@').removesuffix('.service')}.log"))
    url = plan.server.url("postgres", port=port)
    systemctl("start", "--no-block", unit)
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
    """End a restore that was left read-only, or was killed when it was about to end. Raises HostError, BackupError."""
    name = journal.COPY if beside else journal.IN_PLACE
    data = copies.data(beside) if beside else plan.server.data
    with journal.held(name, "another restore runs on this host"):
        state = journal.state(name, data)
        if state not in (journal.PAUSED, journal.CAUGHT_UP, journal.PROMOTING):
            raise HostError(
                "no restore waits here to be promoted",
                where=str(data), seen=state or "none has this directory in hand",
                allowed="one that was left read-only (-e restore_action=pause)", run="provision restore plan",
            )  # fmt: skip
        facts = journal.read(name)
        if beside:
            systemctl("start", copies.unit(plan, beside))
        else:
            systemctl("start", plan.server.unit)
        facts |= _promote(plan, name, facts, data, narrate)
        facts |= {"checked": _check(plan, int(facts["port"])), "finished": system.stamp()}
        facts["next"] = _next(plan, Request(beside=beside, stanza=_foreign(plan, facts)), str(facts.get("aside") or ""))
        return journal.write(name, facts, data)


def _foreign(plan: Plan, facts: dict[str, Any]) -> str:
    return str(facts["stanza"]) if facts["stanza"] != plan.backup.stanza else ""


def _promote(
    plan: Plan, name: str, facts: dict[str, Any], data: Path, narrate: Callable[[str], None]
) -> dict[str, Any]:
    """End recovery; a second run goes on where a killed one was. Gives the new state and timeline."""
    beside, port = bool(facts["beside"]), int(facts["port"])
    unit = copies.unit(plan, port) if beside else plan.server.unit
    url = plan.server.url("postgres", port=port)
    facts = journal.write(name, {**facts, "state": journal.PROMOTING}, data)
    if recovery.recovering(url):
        if facts["target"] != "latest" and not recovery.paused(url):
            # Nothing stopped it: no transaction came after that moment. A server that still has a target that it did
            # not meet refuses to be promoted. It must not leave its timeline for a newer one, though.
            narrate("everything that the archive holds is replayed")
            recovery.forget(url, recovery.POINTS)
            systemctl("restart", unit)
            recovery.await_position(url, str(facts["replayed_to"]))
        recovery.promote(url)
    # They are read at a start only: without one, every later reload would say that they wait for it. A host that has
    # taken over from another one archives again by its own configuration: into its own stanza, which refuses a database
    # that it does not know until `provision backup prepare` has been run.
    archive = () if beside or not _foreign(plan, facts) else ("archive_mode", "restore_command")
    recovery.forget(url, (*recovery.TARGETS, *facts.get("raised", []), *archive))
    systemctl("restart", unit)
    timeline, identifier = recovery.identity(url)
    ended = {"state": journal.PROMOTED, "timeline": timeline, "system": identifier}
    journal.write(name, {**facts, **ended}, data)  # before the backup looks whether it may begin
    if not beside and not archive:
        # On the new timeline, so that the next drill has figures of it.
        systemctl("start", "--no-block", "provision-backup@incr.service")
    return ended


def _flush(plan: Plan) -> str:
    """Let a server that runs archive what it has; give the last segment that left it, '' where none is known to have.

    One that does not run, or does not archive, is no error.
    """
    try:
        with (
            system.as_user(),
            connect_pinned(plan.server.url("postgres"), application="provision restore") as session,
        ):
            row = session.execute("SELECT pg_is_in_recovery()").fetchone()
            if row and row[0]:
                return ""
            row = session.execute("SELECT pg_walfile_name(pg_switch_wal() - 1)").fetchone()
            until = time.monotonic() + ARCHIVE_WAIT_S
            while row and time.monotonic() < until:
                done = session.execute("SELECT last_archived_wal >= %s FROM pg_stat_archiver", (row[0],)).fetchone()
                if done and done[0]:
                    return str(row[0])
                time.sleep(0.2)
    except ProvisionError:
        return ""
    return ""


def _pgvector(plan: Plan) -> None:
    control = Path(f"/usr/share/postgresql/{plan.server.major}/extension/vector.control")
    if not control.exists():
        raise HostError(
            "pgvector is not on this host, and the backup needs it", where=str(control),
            run=plan.site("pgvector"),
        )  # fmt: skip


def _confirm(request: Request) -> None:
    if request.beside:
        return
    host = os.uname().nodename
    if request.confirm != host:
        raise UsageError(
            "a restore in place replaces this host's data, and nobody confirmed it",
            where=host, seen=repr(request.confirm), allowed=f"-e restore_confirm={host}",
        )  # fmt: skip
    if request.delta and request.confirm_delta != "overwrite":
        raise UsageError(
            "restore_mode=delta overwrites the data directory: no copy of it is kept",
            where=host, seen=repr(request.confirm_delta), allowed="-e restore_confirm_delta=overwrite",
            run="leave restore_mode out to move the old data aside",
        )  # fmt: skip


def _clear(plan: Plan, request: Request, data: Path, resumed: str, narrate: Callable[[str], None]) -> str:
    """Stop the server and make room; give where the old data is."""
    if request.beside:
        if resumed:
            systemctl("stop", copies.unit(plan, request.beside))
        _own(data)
        _own(copies.tablespaces(request.beside))
        return ""
    narrate(f"stopping {plan.server.unit}")
    systemctl("stop", *HELPERS)
    systemctl("stop", plan.server.unit)
    if (data / "postmaster.pid").exists() and _alive(data):
        raise BackupError("the server still runs after it was stopped", where=str(data / "postmaster.pid"))
    if resumed:
        return str(journal.read(journal.IN_PLACE).get("aside") or "")
    if request.delta:
        _own(data)
        return ""
    aside = ""
    if data.exists() and any(data.iterdir()):
        aside = f"{data}.before-{system.compact()}"
        data.rename(aside)
        narrate(f"the old data is kept in {aside}")
    _own(data)
    return aside


def _alive(data: Path) -> bool:
    try:
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), 0)
    except (OSError, ValueError, IndexError):
        return False
    return True


def _own(data: Path) -> None:
    data.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    data.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(data, system.POSTGRES, system.POSTGRES)
    data.chmod(0o700)


def _check(plan: Plan, port: int) -> str:
    """Ask the restored database what it holds."""
    with (
        system.as_user(),
        connect_pinned(plan.server.url("postgres", port=port), application="provision restore") as session,
    ):
        there = session.execute("SELECT 1 FROM pg_database WHERE datname = %s", (plan.access.database,)).fetchone()
        mode = session.execute("SHOW archive_mode").fetchone()
    assert mode is not None  # noqa: S101 - the server has this setting
    if there is None:
        return f"there was no database {plan.access.database} at that moment; archive_mode {mode[0]}"
    with (
        system.as_user(),
        connect_pinned(plan.server.url(plan.access.database, port=port), application="provision restore") as session,
    ):
        row = session.execute(
            "SELECT count(*), (SELECT string_agg(extname || ' ' || extversion, ', ' ORDER BY 1) FROM pg_extension)"
            " FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate gives a row
    return f"{plan.access.database} answers: {row[0]} tables, {row[1]}; archive_mode {mode[0]}"


def _next(plan: Plan, request: Request, aside: str) -> list[str]:
    found = []
    if request.action == "pause":
        which = f" --beside {request.beside}" if request.beside else ""
        found.append(f"provision restore promote{which} ends recovery here; or restore again, to another target")
    if request.beside:
        found.append(
            f"when it is not needed any more: pg_dropcluster --stop {plan.server.major} {copies.name(request.beside)};"
            f" rm -rf {copies.tablespaces(request.beside)}"
        )
    elif request.action == "promote" and not request.stanza:
        found.append("an incremental backup of the new timeline was started: provision backup status")
    if request.stanza and not request.beside:
        found.append("provision backup prepare: this host archives into its own stanza, never into the original's")
    if aside:
        found.append(f"provision restore release --confirm {os.uname().nodename}: removes {aside} once you are sure")
    return found


def release(plan: Plan, confirm: str) -> list[str]:
    """Remove the old data directories that restores moved aside. Raises UsageError, and HostError in mid-restore."""
    found = sorted(plan.server.data.parent.glob(f"{plan.server.data.name}.before-*Z"))
    host = os.uname().nodename
    if found and confirm != host:
        raise UsageError(
            "this removes the data from before the restore",
            where=", ".join(map(str, found)),
            allowed=f"--confirm {host}",
        )
    if found and (seen := journal.unfinished(plan.server.data)):
        raise HostError(
            "a restore was begun and has not ended: the old data may still be needed",
            where=str(found[-1]), seen=seen, run="provision restore run, as before, or provision restore promote",
        )  # fmt: skip
    for path in found:
        shutil.rmtree(path)
    return [str(path) for path in found]


def as_facts(prepared: Prepared) -> dict[str, Any]:
    """Give what will be done as plain values."""
    return {
        "stages": list(prepared.stages), "set": prepared.window.set.label, "reachable": str(prepared.window),
        "wish": asdict(prepared.request),
    }  # fmt: skip
