"""Watch a server recover: did it pause where it was meant to, and how far did it replay?

Does IO. Every restored server begins as a standby, which never ends recovery by itself: one that recovers to "the
end of WAL" promotes itself at the first segment that it cannot read, and calls that success.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from provision import system
from provision.database import Connection, connect_pinned
from provision.errors import DatabaseError
from provision.host.backup import tool, wal
from provision.host.backup.targets import Target
from provision.host.backup.tool import BackupError

POLL_S = 0.2
SETTLED_S = 2  # nothing new for so long within the last segment: that was its last record
STUCK_S = 20  # a server that waits for WAL and has read nothing new for so long will not read more ...
STUCK_RETRIES = 10  # ... if it was seen so often to have got nothing: a slow repository is not a broken one
SILENT_S = 3600  # one long segment, or one large file to be synced, may take its time; nothing takes so long
# What a restore writes into postgresql.auto.conf, and what must not stop a later recovery.
POINTS = tuple(f"recovery_target{name}" for name in ("", "_time", "_xid", "_name", "_lsn", "_action"))
TARGETS = (*POINTS, "recovery_target_timeline", "wal_retrieve_retry_interval")


@dataclass(frozen=True)
class End:
    """Where recovery stands: position, timeline, the last transaction's time, and whether it paused at its target."""

    lsn: int
    timeline: int
    last_transaction: str
    paused: bool


def control(programs: str, data: Path) -> dict[str, str]:
    """Read pg_controldata. Raises BackupError for a directory that cannot be started."""
    done = tool.run(f"{programs}/pg_controldata", "-D", data)
    return {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())
    }


def limits(programs: str, data: Path) -> dict[str, str]:
    """Give the settings that a standby must not have less of than its primary had."""
    names = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact")
    seen = control(programs, data)
    renamed = {"max_prepared_xacts": "max_prepared_transactions", "max_locks_per_xact": "max_locks_per_transaction"}
    return {renamed.get(name, name): seen[f"{name} setting"] for name in names if f"{name} setting" in seen}


def raise_limits(programs: str, configuration: Path, data: Path) -> list[str]:
    """Give a restored server the limits that its WAL needs, where its configuration has less; name them.

    A standby with less than its primary had does not start. They are taken back by `forget` after the promotion.
    """
    raised = {}
    for name, value in limits(programs, data).items():
        have = tool.run(f"{programs}/postgres", "-C", name, "-D", configuration).stdout.strip()
        if int(have) < int(value):
            raised[name] = value
    if raised:
        with (data / "postgresql.auto.conf").open("a") as stream:
            stream.writelines(f"{name} = {value}\n" for name, value in raised.items())
    return list(raised)


def await_target(
    url: str, target: Target, wanted: wal.Segment, log: Callable[[], str], narrate: Callable[[str], None]
) -> End:
    """Wait until recovery has paused at its target, or has read the archive up to `wanted`.

    Takes as long as it takes while it gets on. Raises BackupError when the server stops, or waits for WAL before it got
    there: with where it stands, and why.
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
            number = (end.lsn - 1) // wanted.size
            # A server stops at the first record at or behind a position: where none is, all before it is there.
            if waits and seen.still > SETTLED_S and target.kind == "lsn" and end.lsn >= wal.position(target.value):
                return end
            at_last = number > wanted.number or (number == wanted.number and seen.still > SETTLED_S)
            if waits and at_last:
                if target.kind in ("latest", "time"):
                    return end
                raise BackupError(
                    "recovery read all WAL and did not meet its target",
                    where=str(target),
                    seen=f"the archive ends at {wal.text(end.lsn)}", allowed="a target that is in WAL",
                    run="provision restore plan",
                )  # fmt: skip
            if seen.stuck:
                raise BackupError(
                    "recovery stopped before the end of the archive: WAL is missing or damaged",
                    where=f"at {wal.text(end.lsn)}, in segment {_holding(end, wanted.size).name}",
                    seen=_why(text) or f"nothing new for {STUCK_S} s",
                    allowed=f"WAL up to {wanted.name}",
                    run=f"what can be reached: --target lsn:{wal.text(end.lsn)}; docs/the-repository-is-damaged.md",
                )
            if time.monotonic() - seen.told > 10:
                seen.told = time.monotonic()
                narrate(f"replayed to {wal.text(end.lsn)}, transactions to {end.last_transaction or 'none yet'}")
        else:
            seen.note(len(text), "")  # before it lets anybody in, its log alone tells that it gets on
        if "database system is shut down" in text or ("startup process" in text and "exited with" in text):
            raise BackupError("the server stopped during recovery", where=str(target), seen=_why(text))
        if seen.still > SILENT_S:
            raise BackupError(f"recovery has not moved for {SILENT_S} s", where=str(target), seen=_why(text))
        time.sleep(POLL_S)


def _holding(end: End, size: int) -> wal.Segment:
    """Name the segment of the next record: at its first byte, that is not the one before."""
    return wal.Segment(end.timeline, end.lsn // size, size)


class _Progress:
    """Whether recovery gets on: where it was, since when, and how often the archive had nothing for it since."""

    def __init__(self) -> None:
        self.last, self.moved, self.retries, self.told = -1, time.monotonic(), 0, 0.0
        self.command = ""

    def note(self, position: int, waits: str, command: str = "") -> None:
        if position != self.last:
            self.last, self.moved, self.retries = position, time.monotonic(), 0
        # While a restore command runs, a slow repository may yet answer; between two of them, or when it is another one
        # already (the server does not pause after one that took longer than its interval), the last one was of no use.
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
    assert row is not None  # noqa: S101 - the query gives a row or raises
    timeline = max(int(str(row[4] or 0)), int(str(row[5] or 0)))
    command = ""
    with suppress(OSError):  # its process may have ended
        command = Path(f"/proc/{row[7]}/task/{row[7]}/children").read_text().strip()
    return End(wal.position(str(row[1])), timeline, str(row[3]), row[2] == "paused"), str(row[6]), command


def _ask(url: str, query: str) -> tuple[object, ...]:
    with system.as_user(), connect_pinned(url, application="provision restore") as session:
        row = session.execute(query).fetchone()
    assert row is not None  # noqa: S101 - these queries give a row or raise
    return row


def recovering(url: str) -> bool:
    """Tell whether a server is in recovery."""
    return bool(_ask(url, "SELECT pg_is_in_recovery()")[0])


def paused(url: str) -> bool:
    """Tell whether a server's recovery is paused."""
    return _ask(url, "SELECT pg_get_wal_replay_pause_state()")[0] == "paused"


def identity(url: str) -> tuple[int, int]:
    """Give a server's timeline and system identifier."""
    row = _ask(
        url, "SELECT timeline_id, (SELECT system_identifier FROM pg_control_system()) FROM pg_control_checkpoint()"
    )
    return int(str(row[0])), int(str(row[1]))


def await_position(url: str, lsn: str) -> None:
    """Wait until a server that was started again has replayed what it had replayed before. Raises BackupError."""
    for _ in range(int(SILENT_S / POLL_S)):
        with suppress(DatabaseError):
            if _ask(url, f"SELECT pg_last_wal_replay_lsn() >= '{wal.text(wal.position(lsn))}'")[0]:
                return
        time.sleep(POLL_S)
    raise BackupError(f"the server was not back at {lsn} within {SILENT_S} s", where=url)


def promote(url: str) -> None:
    """End recovery. Raises DatabaseError."""
    if not _ask(url, "SELECT pg_promote(true, 600)")[0]:
        raise DatabaseError("the server was not promoted within 600 s", where=url)
    with system.as_user(), connect_pinned(url, application="provision restore") as session:
        session.execute("CHECKPOINT")


def forget(url: str, names: tuple[str, ...]) -> None:
    """Take settings out of postgresql.auto.conf."""
    with system.as_user(), connect_pinned(url, application="provision restore") as session:
        for name in names:
            session.execute(f"ALTER SYSTEM RESET {name}")


def _why(log: str) -> str:
    told = [
        line for line in log.splitlines() if re.search(r"FATAL|PANIC|ERROR|could not|invalid|unexpected|HINT", line)
    ]
    return "; ".join(dict.fromkeys(told[-6:]))[:1500]


def systemctl(*words: str) -> None:
    """Run systemctl. Raises BackupError."""
    system.run("systemctl", *words, error=BackupError)


class Log:
    """What a server wrote into its log since this was made."""

    def __init__(self, path: Path) -> None:
        """Remember the log's end."""
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0

    def __call__(self) -> str:
        """Give what was written since."""
        if not self.path.exists():
            return ""
        with self.path.open(errors="replace") as stream:
            stream.seek(self.offset)
            return stream.read()
