"""Bring the whole cluster back to a moment: in place, or beside the original on another port.

Does IO as root. In place: the server is stopped, its data directory is moved aside (or with `delta` reused), the set is
restored as a standby, recovery is watched to its very end, and only then is the server promoted. Never deletes data
that it did not restore itself, and never lets a copy archive into the original's repository. A journal in
/var/lib/provision lets a run that was killed be run again.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provision.backup import plan, recovery, show, targets, tool, wal
from provision.backup.catalogue import Catalogue
from provision.backup.drill import restore as restore_beside
from provision.backup.plan import Plan
from provision.backup.recovery import systemctl
from provision.backup.targets import Target, Window
from provision.backup.tool import BackupError
from provision.database import connect
from provision.errors import HostError, ProvisionError, UsageError

JOURNAL = "restore"
ARCHIVE_WAIT_S = 60
COPY_PREFIX = "restored"
SPARE = 1.1  # a restore needs the set's size and some WAL


@dataclass(frozen=True)
class Wish:
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

    wish: Wish
    target: Target
    window: Window
    stages: tuple[str, ...]
    resumed: bool


def prepare(wanted: Plan, wish: Wish) -> Prepared:
    """Judge a wish against the repository and this host; changes nothing but that the server archives what it has.

    Raises UsageError, HostError and BackupError.
    """
    wanted.need_physical()
    target = targets.parse(wish.target)
    if wish.delta and wish.beside:
        raise UsageError(
            "a copy beside has no data directory to reuse", seen="mode delta with a port", allowed="one of them"
        )
    if not wish.stanza:
        _flush(wanted)
    catalogue = Catalogue.read(wanted, wish.stanza, wish.timeline)
    stanza = catalogue.repository.stanza
    version = catalogue.repository.majors[catalogue.repository.current]
    if version != str(wanted.major):
        raise HostError(
            "this backup is of another major of PostgreSQL",
            where=f"stanza {stanza}", seen=f"the backup is of {version}, this host has {wanted.major}",
            allowed=f"a host with PostgreSQL {version}", run="docs/move-to-another-major.md",
        )  # fmt: skip
    _pgvector(wanted)
    window = catalogue.choose(target, wish.set)
    data = _copy(wish) if wish.beside else wanted.data
    resumed = plan.evidence(JOURNAL).get("state") == "restoring" and plan.evidence(JOURNAL).get("data") == str(data)
    if wish.beside:
        _free_port(wish.beside)
        if data.exists() and any(data.iterdir()) and not resumed:
            raise HostError(
                "the directory of the copy is not empty", where=str(data), allowed="another port, or an empty directory"
            )
    need = 0 if wish.delta or resumed else int(window.set.size * SPARE)
    if tool.free_bytes(data) < need:
        raise HostError(
            "there is too little space for the restored data beside what is there",
            where=str(data.parent), seen=f"{show.size(tool.free_bytes(data))} free", allowed=f"{show.size(need)}",
            run="make room, or -e restore_mode=delta, which reuses the data directory",
        )  # fmt: skip
    return Prepared(wish, target, window, tuple(_stages(wanted, wish, target, window, data, resumed)), resumed)


def _stages(wanted: Plan, wish: Wish, target: Target, window: Window, data: Path, resumed: bool) -> list[str]:
    ends = "promote it, which begins a new timeline" if wish.action == "promote" else "leave it paused, read-only"
    begin = []
    if wish.beside:
        begin = [f"make cluster {wanted.major}/{_name(wish)} on port {wish.beside}, {data}; it archives nothing"]
    elif resumed:
        begin = [f"go on with the restore that was killed, in {data}"]
    else:
        aside = "reuse what is right of" if wish.delta else "move aside and keep"
        begin = [f"stop {wanted.unit}: every connection ends", f"{aside} {data}"]
    return [
        *begin,
        f"restore set {window.set.label} ({show.size(window.set.size)}) from {wanted.place}",
        f"replay WAL to {target}; reachable: {window}",
        ends,
        "check the end of recovery against the archive's, and that the database answers",
    ]


def run(wanted: Plan, prepared: Prepared, narrate: Callable[[str], None]) -> dict[str, Any]:
    """Do it; give what became of it. Raises UsageError without the confirmation, BackupError when it did not work."""
    wish, target, window = prepared.wish, prepared.target, prepared.window
    _confirm(wish)
    begun = time.time()
    stanza = wish.stanza or wanted.stanza
    data = _copy(wish) if wish.beside else wanted.data
    facts: dict[str, Any] = {
        "when": plan.stamp(begun),
        "stanza": stanza,
        "set": window.set.label,
        "target": str(target),
    }
    aside = _clear(wanted, wish, data, prepared.resumed, narrate)
    plan.keep(JOURNAL, {**facts, "state": "restoring", "data": str(data), "aside": aside})
    narrate(f"restoring {window.set.label} into {data}")
    extra = ["--delta"] if prepared.resumed or wish.delta else []
    extra += [f"--recovery-option=recovery_target_timeline={wish.timeline}"] if wish.timeline else []
    if wish.beside or wish.stanza:
        # Of another host's stanza, too: its archive is read by name, and nothing is ever pushed into it.
        restore_beside(stanza, window.set.label, data, target, *extra)
    else:
        options = {**target.options, "wal_retrieve_retry_interval": "500ms"}
        tool.program(
            stanza, f"--set={window.set.label}", "--type=standby",
            *(f"--recovery-option={name}={value}" for name, value in options.items()), *extra, "restore",
        )  # fmt: skip
    restored = time.time()
    narrate(f"replaying to {target}")
    port, unit = (
        (wish.beside, f"postgresql@{wanted.major}-{_name(wish)}.service") if wish.beside else (wanted.port, wanted.unit)
    )
    log = recovery.Log(Path(f"/var/log/postgresql/{unit.removeprefix('postgresql@').removesuffix('.service')}.log"))
    if wish.beside:
        _make_copy(wanted, wish, data)
    url = wanted.url("postgres", port=port)
    systemctl("start", "--no-block", unit)
    end = recovery.await_target(url, target, window.reached, log, narrate)
    timeline = end.timeline
    if target.kind == "time" and not end.paused:
        # Nothing was committed after the moment, so that no transaction told recovery to stop. A server that still has
        # a target that it did not meet refuses to be promoted.
        narrate("no transaction came after that moment: the end of WAL is what is wanted")
        _forget(url, wish)
        systemctl("restart", unit)
        end = recovery.await_target(url, Target("latest"), window.reached, log, narrate)
    if wish.action == "promote":
        timeline = recovery.promote(url)
        _forget(url, wish)
        # They are read at a start only: without one, every later reload would say that they wait for it.
        systemctl("restart", unit)
    facts |= {
        "aside": aside, "port": port, "replayed_to": wal.text(end.lsn), "archive_ends_at": wal.text(window.reached.end),
        "last_transaction": end.last_transaction or "none after the backup", "timeline": timeline,
        "state": "promoted" if wish.action == "promote" else "paused: read-only, recovery can go on",
        "restore_seconds": round(restored - begun, 1), "seconds": round(time.time() - begun, 1),
        "checked": _check(wanted, port), "stages": prepared.stages,
        "next": _next(wanted, wish, aside),
    }  # fmt: skip
    plan.keep(JOURNAL, {**facts, "finished": plan.stamp()})
    if not wish.beside and not wish.stanza and wish.action == "promote":
        # On the new timeline, so that the next drill has figures of it.
        systemctl("start", "--no-block", "provision-backup@incr.service")
    return facts


def _flush(wanted: Plan) -> None:
    """Let a server that runs archive what it has, so that nothing of it is lost; one that does not is no error."""
    try:
        with tool.as_postgres(), connect(wanted.url("postgres"), application="provision restore") as session:
            row = session.execute("SELECT pg_is_in_recovery()").fetchone()
            if row and row[0]:
                return
            row = session.execute("SELECT pg_walfile_name(pg_switch_wal() - 1)").fetchone()
            until = time.monotonic() + ARCHIVE_WAIT_S
            while row and time.monotonic() < until:
                done = session.execute("SELECT last_archived_wal >= %s FROM pg_stat_archiver", (row[0],)).fetchone()
                if done and done[0]:
                    return
                time.sleep(0.2)
    except ProvisionError:
        return


def _pgvector(wanted: Plan) -> None:
    control = Path(f"/usr/share/postgresql/{wanted.major}/extension/vector.control")
    if not control.exists():
        raise HostError(
            "pgvector is not on this host, and the backup needs it", where=str(control),
            run="ansible-playbook site.yml -i INVENTORY --tags pgvector",
        )  # fmt: skip


def _free_port(port: int) -> None:
    with socket.socket() as probe:
        if not 1024 <= port <= 65535 or probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UsageError(
                "this port cannot be used for the copy", seen=str(port), allowed="a free one, 1024 to 65535"
            )


def _confirm(wish: Wish) -> None:
    if wish.beside:
        return
    host = os.uname().nodename
    if wish.confirm != host:
        raise UsageError(
            "a restore in place replaces this host's data, and nobody confirmed it",
            where=host, seen=repr(wish.confirm), allowed=f"-e restore_confirm={host}",
        )  # fmt: skip
    if wish.delta and wish.confirm_delta != "overwrite":
        raise UsageError(
            "restore_mode=delta overwrites the data directory: no copy of it is kept",
            where=host, seen=repr(wish.confirm_delta), allowed="-e restore_confirm_delta=overwrite",
            run="leave restore_mode out to move the old data aside",
        )  # fmt: skip


def _name(wish: Wish) -> str:
    return f"{COPY_PREFIX}{wish.beside}"


def _copy(wish: Wish) -> Path:
    return Path(f"/var/lib/postgresql/{_name(wish)}")


def _clear(wanted: Plan, wish: Wish, data: Path, resumed: bool, narrate: Callable[[str], None]) -> str:
    """Stop the server and make room; give where the old data is."""
    if wish.beside:
        _own(data)
        return ""
    narrate(f"stopping {wanted.unit}")
    systemctl("stop", wanted.unit)
    if (data / "postmaster.pid").exists() and _alive(data):
        raise BackupError("the server still runs after it was stopped", where=str(data / "postmaster.pid"))
    if resumed:
        return str(plan.evidence(JOURNAL).get("aside") or "")
    if wish.delta:
        _own(data)
        return ""
    aside = ""
    if data.exists() and any(data.iterdir()):
        aside = f"{data}.before-{plan.compact()}"
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
    data.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(data, tool.USER, tool.USER)
    data.chmod(0o700)


def _make_copy(wanted: Plan, wish: Wish, data: Path) -> None:
    """Write a configuration for the copy: the original's, but for its places, its port and its archive."""
    target = wanted.configuration.with_name(_name(wish))
    shutil.copytree(wanted.configuration, target, dirs_exist_ok=True)
    text = (target / "postgresql.conf").read_text().replace(str(wanted.configuration), str(target))
    (target / "postgresql.conf").write_text(text.replace(str(wanted.data), str(data)))
    limits = "".join(f"{name} = {value}\n" for name, value in recovery.limits(wanted.programs, data).items())
    (target / "conf.d/90-restored.conf").write_text(
        "# Made by provision restore: a copy, which must never archive into the original's repository.\n"
        f"port = {wish.beside}\nlisten_addresses = 'localhost'\narchive_mode = off\narchive_command = ''\n"
        f"cluster_name = '{_name(wish)}'\nexternal_pid_file = '/var/run/postgresql/{wanted.major}-{_name(wish)}.pid'\n"
        f"shared_buffers = 128MB\nhuge_pages = off\nwal_retrieve_retry_interval = 500ms\n"
        f"primary_conninfo = ''\n{limits}"
    )
    for path in [target, *target.rglob("*")]:
        shutil.chown(path, tool.USER, tool.USER)
    systemctl("daemon-reload")


def _forget(url: str, wish: Wish) -> None:
    """Take the target out of postgresql.auto.conf, so that it does not stop a later recovery.

    A host that has taken over from another one archives again, by its own configuration: into its own stanza, which
    refuses a database that it does not know until `provision backup prepare` has been run.
    """
    with tool.as_postgres(), connect(url, application="provision restore") as session:
        for name in ("", "_time", "_xid", "_name", "_lsn", "_action", "_timeline"):
            session.execute(f"ALTER SYSTEM RESET recovery_target{name}")
        session.execute("ALTER SYSTEM RESET wal_retrieve_retry_interval")
        if wish.stanza and not wish.beside:
            session.execute("ALTER SYSTEM RESET archive_mode")
            session.execute("ALTER SYSTEM RESET restore_command")


def _check(wanted: Plan, port: int) -> str:
    """Ask the restored database what it holds."""
    with tool.as_postgres(), connect(wanted.url(port=port), application="provision restore") as session:
        row = session.execute(
            "SELECT count(*), (SELECT string_agg(extname || ' ' || extversion, ', ' ORDER BY 1) FROM pg_extension)"
            " FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
        mode = session.execute("SHOW archive_mode").fetchone()
    assert row is not None  # noqa: S101 - an aggregate gives a row
    assert mode is not None  # noqa: S101
    return f"{wanted.database} answers: {row[0]} tables, {row[1]}; archive_mode {mode[0]}"


def _next(wanted: Plan, wish: Wish, aside: str) -> list[str]:
    found = []
    if wish.action == "pause":
        found.append(f"psql -p {wish.beside or wanted.port} -c 'SELECT pg_promote()' ends recovery; or restore again")
    if wish.beside:
        found.append(f"when it is not needed any more: pg_dropcluster --stop {wanted.major} {_name(wish)}")
    elif wish.action == "promote":
        found.append("an incremental backup of the new timeline was started: provision backup status")
    if wish.stanza:
        found.append("provision backup prepare: this host archives into its own stanza, never into the original's")
    if aside:
        found.append(f"provision restore release: removes {aside} once you are sure")
    return found


def release(wanted: Plan, confirm: str) -> list[str]:
    """Remove the old data directories that restores moved aside. Raises UsageError, and HostError in mid-restore."""
    found = sorted(wanted.data.parent.glob(f"{wanted.data.name}.before-*Z"))
    host = os.uname().nodename
    if found and confirm != host:
        raise UsageError(
            "this removes the data from before the restore",
            where=", ".join(map(str, found)),
            allowed=f"--confirm {host}",
        )
    if found and plan.evidence(JOURNAL).get("state") == "restoring":
        raise HostError(
            "a restore was begun and has not ended: the old data may still be needed",
            where=str(found[-1]),
            seen=f"{plan.EVIDENCE}/{JOURNAL}.json says restoring",
            run="provision restore run, as before: it goes on where it was",
        )
    for path in found:
        shutil.rmtree(path)
    return [str(path) for path in found]


def as_facts(prepared: Prepared) -> dict[str, Any]:
    """Give what will be done as plain values."""
    return {
        "stages": list(prepared.stages), "set": prepared.window.set.label, "reachable": str(prepared.window),
        "wish": asdict(prepared.wish),
    }  # fmt: skip
