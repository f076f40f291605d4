"""Monitor the recovery of a restored server: whether it reaches its target, and how far it replays.

Does IO. Every restored server starts as a standby, which never ends recovery by itself. A server that recovers to the
end of WAL would promote itself at the first segment it cannot read and report success.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provision import secure_path, system
from provision.database import Connection, connect_pinned
from provision.errors import DatabaseError
from provision.host.backup import tool, wal
from provision.host.backup.targets import Target
from provision.host.backup.tool import BackupError

POLL_S = 0.2
SETTLED_S = 2  # no progress for this long in the last segment: the last record was replayed
STUCK_S = 20  # no progress for this long while waiting for WAL: recovery is stuck ...
STUCK_RETRIES = 10  # ... after this many failed attempts to fetch WAL; a slow repository is not an error
SHOWN_CHARACTERS = 300
SILENT_S = 3600  # upper bound: even a large file to sync takes less
# Settings that a restore writes into postgresql.auto.conf; they must not stop a later recovery.
POINTS = tuple(f"recovery_target{name}" for name in ("", "_time", "_xid", "_name", "_lsn", "_action"))
TARGETS = (*POINTS, "recovery_target_timeline", "wal_retrieve_retry_interval")


@dataclass(frozen=True)
class End:
    """The state of recovery: replayed position, timeline, time of the last transaction, and whether it is paused."""

    lsn: int
    timeline: int
    last_transaction: str
    paused: bool


def control(programs: str, data: Path) -> dict[str, str]:
    """Read pg_controldata by label. Raises BackupError if the directory is not a cluster."""
    done = tool.run(f"{programs}/pg_controldata", "-D", data)
    return {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())
    }


def limits(programs: str, data: Path) -> dict[str, str]:
    """Return the settings that a standby needs at least as high as its primary had them."""
    names = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact")
    seen = control(programs, data)
    renamed = {"max_prepared_xacts": "max_prepared_transactions", "max_locks_per_xact": "max_locks_per_transaction"}
    return {renamed.get(name, name): seen[f"{name} setting"] for name in names if f"{name} setting" in seen}


def raise_limits(programs: str, configuration: Path, data: Path) -> list[str]:
    """Raise the limits that are lower than the primary's were, in postgresql.auto.conf. Return their names.

    A standby with lower limits does not start. `forget` resets them after the promotion.
    """
    raised = {}
    for name, value in limits(programs, data).items():
        have = tool.run(f"{programs}/postgres", "-C", name, "-D", configuration).stdout.strip()
        if int(have) < int(value):
            raised[name] = value
    if raised:
        # As the owner of the directory: root would follow a link there.
        with system.as_user(), (data / "postgresql.auto.conf").open("a") as stream:
            stream.writelines(f"{name} = {value}\n" for name, value in raised.items())
    return list(raised)


def await_target(url: str, target: Target, last: wal.Segment, log: Log, narrate: Callable[[str], None]) -> End:
    """Wait until recovery pauses at its target, or has replayed the archive up to the segment `last`.

    There is no time limit while recovery progresses. Raises BackupError with the position and the reason if the server
    stops or cannot get the next WAL.
    """
    seen = _Progress()
    session = None
    while True:
        text = log()
        if session is None:
            session = _try(url)
        if session is not None:
            try:
                end, waits, command = _look(session)
            except Exception:
                session = None
                continue
            if end.paused:
                return end
            seen.note(end.lsn, waits, command)
            number = (end.lsn - 1) // last.size
            # Recovery pauses at the first record at or after an LSN; without such a record it cannot pause.
            if waits and seen.still > SETTLED_S and target.kind == "lsn" and end.lsn >= wal.position(target.value):
                return end
            at_last = number > last.number or (number == last.number and seen.still > SETTLED_S)
            if waits and at_last:
                if target.kind in ("latest", "time"):
                    return end
                raise BackupError(
                    "recovery replayed all WAL without reaching its target",
                    where=str(target),
                    seen=f"the archive ends at {wal.text(end.lsn)}", allowed="a target within the archived WAL",
                    run="provision restore plan",
                )  # fmt: skip
            if seen.stuck:
                raise BackupError(
                    "recovery stopped before the end of the archive: WAL is missing or damaged",
                    where=f"at {wal.text(end.lsn)}, in segment {_holding(end, last.size).name}",
                    seen=_why(text) or f"no progress for {STUCK_S} s",
                    allowed=f"WAL up to {last.name}",
                    run=f"restore to --target lsn:{wal.text(end.lsn)}, the last reachable position; "
                    "docs/the-repository-is-damaged.md",
                )
            if time.monotonic() - seen.reported > 10:
                seen.reported = time.monotonic()
                narrate(f"replayed to {wal.text(end.lsn)}, last transaction {end.last_transaction or 'none yet'}")
        else:
            seen.note(len(text), "")  # before it accepts connections, only the log shows progress
        # Only of a server that refuses connections: on another one a client can write such a line into the log.
        if session is None and log.ended(text):
            said = log()
            reason = _why(said) or said[-SHOWN_CHARACTERS:].strip()
            raise BackupError("the server stopped during recovery", where=str(target), seen=reason)
        if seen.still > SILENT_S:
            raise BackupError(f"no progress of recovery for {SILENT_S} s", where=str(target), seen=_why(text))
        time.sleep(POLL_S)


def _holding(end: End, size: int) -> wal.Segment:
    """Return the segment of the next record."""
    return wal.Segment(end.timeline, end.lsn // size, size)


class _Progress:
    """Progress of recovery: last position, time since it moved, and failed attempts to fetch WAL since then."""

    def __init__(self) -> None:
        self.last, self.moved, self.retries, self.reported = -1, time.monotonic(), 0, 0.0
        self.command = ""

    def note(self, position: int, waits: str, command: str = "") -> None:
        if position != self.last:
            self.last, self.moved, self.retries = position, time.monotonic(), 0
        # A running restore command may still succeed. Between two commands, or when another process runs (the server
        # starts the next one at once if the last took longer than its interval), the last one failed.
        self.retries += waits not in ("", "RestoreCommand") or (command != "" and self.command not in ("", command))
        self.command = command or self.command

    @property
    def still(self) -> float:
        return time.monotonic() - self.moved

    @property
    def stuck(self) -> bool:
        return self.still > STUCK_S and self.retries >= STUCK_RETRIES


def _try(url: str) -> Connection | None:
    try:
        with system.as_user():
            return connect_pinned(url, application="provision restore")
    except DatabaseError:
        return None


def _look(session: Connection) -> tuple[End, str, str]:
    row = session.execute(
        "SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn(), '0/0')::text, pg_get_wal_replay_pause_state(),"
        " coalesce(pg_last_xact_replay_timestamp()::text, ''),"
        " (SELECT min_recovery_end_timeline FROM pg_control_recovery()),"
        " (SELECT timeline_id FROM pg_control_checkpoint()),"
        " coalesce((SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN"
        " ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream', 'RecoveryWalAll', 'RestoreCommand')), ''),"
        " (SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup')"
    ).fetchone()
    assert row is not None  # noqa: S101 - the query returns a row or raises
    timeline = max(int(str(row[4] or 0)), int(str(row[5] or 0)))
    command = ""
    with suppress(OSError):  # the process may have ended
        command = Path(f"/proc/{row[7]}/task/{row[7]}/children").read_text().strip()
    return End(wal.position(str(row[1])), timeline, str(row[3]), row[2] == "paused"), str(row[6]), command


def _ask(url: str, query: str, *parameters: object) -> tuple[object, ...]:
    with system.as_user(), connect_pinned(url, application="provision restore") as session:
        row = session.execute(query, parameters or None).fetchone()
    assert row is not None  # noqa: S101 - these queries return a row or raise
    return row


def recovering(url: str) -> bool:
    """Return whether a server is in recovery."""
    return bool(_ask(url, "SELECT pg_is_in_recovery()")[0])


def paused(url: str) -> bool:
    """Return whether a server's recovery is paused."""
    return _ask(url, "SELECT pg_get_wal_replay_pause_state()")[0] == "paused"


def identity(url: str) -> tuple[int, int]:
    """Return a server's timeline and system identifier."""
    row = _ask(
        url, "SELECT timeline_id, (SELECT system_identifier FROM pg_control_system()) FROM pg_control_checkpoint()"
    )
    return int(str(row[0])), int(str(row[1]))


def await_answer(url: str) -> None:
    """Wait until a started server accepts connections. Raises BackupError."""
    until = time.monotonic() + SILENT_S
    while (session := _try(url)) is None:
        if time.monotonic() > until:
            raise BackupError(f"the server does not answer within {SILENT_S} s", where=url)
        time.sleep(POLL_S)
    session.close()


def await_position(url: str, lsn: str) -> None:
    """Wait until a restarted server has replayed up to `lsn` again. Raises BackupError."""
    for _ in range(int(SILENT_S / POLL_S)):
        with suppress(DatabaseError):
            if _ask(url, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", wal.text(wal.position(lsn)))[0]:
                return
        time.sleep(POLL_S)
    raise BackupError(f"the server did not replay to {lsn} within {SILENT_S} s", where=url)


def promote(url: str) -> None:
    """End recovery. Raises DatabaseError."""
    if not _ask(url, "SELECT pg_promote(true, 600)")[0]:
        raise DatabaseError("the server was not promoted within 600 s", where=url)
    with system.as_user(), connect_pinned(url, application="provision restore") as session:
        session.execute("CHECKPOINT")


def forget(url: str, names: tuple[str, ...]) -> None:
    """Reset settings in postgresql.auto.conf."""
    with system.as_user(), connect_pinned(url, application="provision restore") as session:
        for name in names:
            session.execute(f"ALTER SYSTEM RESET {name}")


def _why(log: str) -> str:
    messages = [
        line for line in log.splitlines() if re.search(r"FATAL|PANIC|ERROR|could not|invalid|unexpected|HINT", line)
    ]
    return "; ".join(dict.fromkeys(messages[-6:]))[:1500]


def systemctl(*words: str) -> None:
    """Run systemctl. Raises BackupError."""
    system.run("systemctl", *words, error=BackupError)


class Log:
    """The part of a server's log that was written since this object was created."""

    def __init__(self, path: Path) -> None:
        """Remember the end of the log."""
        self.path = path
        with system.as_user():
            self.offset = path.stat().st_size if path.exists() else 0

    def __call__(self) -> str:
        """Return the new part."""
        # As postgres, who owns the log: root would follow a link to any file, and its lines end in messages.
        with system.as_user():
            if not self.path.exists():
                return ""
            with os.fdopen(secure_path.open_file(self.path), "rb") as stream:
                stream.seek(self.offset)
                return stream.read(secure_path.MOST_BYTES).decode(errors="replace")

    def ended(self, text: str) -> bool:
        """Whether the new part says that the server ended."""
        return "database system is shut down" in text or ("startup process" in text and "exited with" in text)
