"""Watch a server recover: did it pause where it was meant to, and how far did it replay?

Does IO. Every restored server begins as a standby, which never ends recovery by itself: one that recovers to "the
end of WAL" promotes itself at the first segment that it cannot read, and calls that success.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from provision.backup import tool, wal
from provision.backup.targets import Target
from provision.backup.tool import BackupError
from provision.database import Connection, connect
from provision.errors import DatabaseError

POLL_S = 0.2
SETTLED_S = 2  # nothing new for so long within the last segment: that was its last record
STUCK_S = 20  # a server that waits for WAL and has read nothing new for so long will not read more
START_S = 3600


@dataclass(frozen=True)
class End:
    """Where recovery stands: position, timeline, the last transaction's time, and whether it paused at its target."""

    lsn: int
    timeline: int
    last_transaction: str
    paused: bool


def control(programs: Path, data: Path) -> dict[str, str]:
    """Read pg_controldata. Raises BackupError for a directory that cannot be started."""
    done = tool.run(programs / "pg_controldata", "-D", data)
    return {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())
    }


def limits(programs: Path, data: Path) -> dict[str, str]:
    """Give the settings that a standby must not have less of than its primary had."""
    names = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact")
    seen = control(programs, data)
    renamed = {"max_prepared_xacts": "max_prepared_transactions", "max_locks_per_xact": "max_locks_per_transaction"}
    return {renamed.get(name, name): seen[f"{name} setting"] for name in names if f"{name} setting" in seen}


def await_target(
    url: str, target: Target, wanted: wal.Segment, log: Callable[[], str], narrate: Callable[[str], None]
) -> End:
    """Wait until recovery has paused at its target, or has read the archive up to `wanted`.

    Raises BackupError when the server stops, or waits for WAL before it got there: with where it stands, and why.
    """
    deadline, session, last, moved = time.monotonic() + START_S, None, -1, time.monotonic()
    told = 0.0
    while time.monotonic() < deadline:
        if session is None:
            session = _try(url)
        if session is not None:
            try:
                end, waiting = _look(session)
            except Exception:
                session = None
                continue
            if end.paused:
                return end
            if end.lsn != last:
                last, moved = end.lsn, time.monotonic()
            number = (end.lsn - 1) // wanted.size
            if waiting and (
                number > wanted.number or (number == wanted.number and time.monotonic() - moved > SETTLED_S)
            ):
                if target.kind in ("latest", "time"):
                    return end
                raise BackupError(
                    "recovery read all WAL and did not meet its target",
                    where=str(target),
                    seen=f"the archive ends at {wal.text(end.lsn)}", allowed="a target that is in WAL",
                    run="provision restore plan",
                )  # fmt: skip
            if waiting and time.monotonic() - moved > STUCK_S:
                raise BackupError(
                    "recovery stopped before the end of the archive: WAL is missing or damaged",
                    where=f"at {wal.text(end.lsn)}, in segment {wal.Segment(end.timeline, number, wanted.size).name}",
                    seen=_why(log()) or f"nothing new for {STUCK_S} s",
                    allowed=f"WAL up to {wanted.name}",
                    run=f"what can be reached: --target lsn:{wal.text(end.lsn)}; docs/the-repository-is-damaged.md",
                )
            if time.monotonic() - told > 10:
                told = time.monotonic()
                narrate(f"replayed to {wal.text(end.lsn)}, transactions to {end.last_transaction or 'none yet'}")
        text = log()
        if "database system is shut down" in text or ("startup process" in text and "exited with" in text):
            raise BackupError("the server stopped during recovery", where=str(target), seen=_why(text))
        time.sleep(POLL_S)
    raise BackupError(f"recovery took longer than {START_S} s", where=str(target), seen=_why(log()))


def _try(url: str) -> Connection | None:
    try:
        with tool.as_postgres():
            return connect(url, application="provision restore")
    except DatabaseError:
        return None


def _look(session: Connection) -> tuple[End, bool]:
    row = session.execute(
        "SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn(), '0/0')::text, pg_get_wal_replay_pause_state(),"
        " coalesce(pg_last_xact_replay_timestamp()::text, ''),"
        " (SELECT min_recovery_end_timeline FROM pg_control_recovery()),"
        " (SELECT timeline_id FROM pg_control_checkpoint()),"
        " EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event IN"
        " ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream', 'RecoveryWalAll', 'RestoreCommand'))"
    ).fetchone()
    assert row is not None  # noqa: S101 - the query gives a row or raises
    timeline = max(int(str(row[4] or 0)), int(str(row[5] or 0)))
    return End(wal.position(str(row[1])), timeline, str(row[3]), row[2] == "paused"), bool(row[6])


def promote(url: str) -> int:
    """End recovery and give the new timeline. Raises DatabaseError."""
    with tool.as_postgres(), connect(url, application="provision restore") as session:
        row = session.execute("SELECT pg_promote(true, 600)").fetchone()
        if row is None or not row[0]:
            raise DatabaseError("the server was not promoted within 600 s", where=url)
        session.execute("CHECKPOINT")
        found = session.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
        return int(str(found[0])) if found else 0


def _why(log: str) -> str:
    told = [
        line for line in log.splitlines() if re.search(r"FATAL|PANIC|ERROR|could not|invalid|unexpected|HINT", line)
    ]
    return "; ".join(dict.fromkeys(told[-6:]))[:1500]


def systemctl(*words: str) -> None:
    """Run systemctl. Raises BackupError."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode != 0:
        raise BackupError(f"systemctl {' '.join(words)} failed", seen=done.stderr.strip()[-500:])


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
