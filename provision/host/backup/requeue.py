"""Archive the WAL that a lost primary had not archived. Does IO as postgres.

A replica marks the segments that it receives as archived, for the primary does that. If the primary is lost first, they
are missing from the archive, and nothing after them can be restored. The new primary has them for a while
(wal_keep_size): Patroni calls this command at a promotion, and it marks them as ready again, for the archiver.

Source: XLogArchiveForceDone in PostgreSQL's xlogarchive.c, pgarch.c.
"""

from __future__ import annotations

from collections.abc import Iterable

from provision import secure_path, system
from provision.host.backup import recovery, tool, wal
from provision.host.backup.catalogue import Catalogue
from provision.plan.schema import Plan


def missing(
    done: Iterable[wal.Segment], archived: Iterable[wal.Segment], history: wal.History, timeline: int
) -> list[wal.Segment]:
    """Return complete segments of a server's past that its archive lacks. Pure.

    `done` are those on its disk, `timeline` its own. Of each earlier timeline, only segments after the last archived
    one and before the branch count: what a retention removed is older.
    """
    last: dict[int, int] = {}
    for each in archived:
        last[each.timeline] = max(each.number, last.get(each.timeline, -1))
    ends, at = dict[int, int](), timeline
    while at in history:
        parent, branch = history[at]
        ends[parent], at = branch, parent
    newest = max(last.values(), default=-1)
    return sorted(
        each
        for each in done
        if each.timeline in ends and each.end <= ends[each.timeline] and each.number > last.get(each.timeline, newest)
    )


def run(plan: Plan) -> list[str]:
    """Mark segments that the archive lacks as ready to be archived; return their names. Raises BackupError."""
    tool.need_physical(plan)
    folder = plan.server.data / "pg_wal"
    catalogue = Catalogue.read(plan)
    history = {
        int(path.stem, 16): branch
        for path in folder.glob("*.history")
        if (branch := wal.parse_history(secure_path.text(path))) is not None
    }
    timeline, _ = recovery.identity(plan.server.url("postgres"))
    done = [
        wal.Segment.parse(path.stem)
        for path in (folder / "archive_status").glob("*.done")
        if wal.is_segment(path.stem) and (folder / path.stem).exists()
    ]
    found = missing(done, catalogue.archive.segments, history, max(timeline, *history, 1))
    for each in found:
        status = folder / "archive_status" / each.name
        status.with_suffix(".done").rename(status.with_suffix(".ready"))
    if found:
        system.sync(folder / "archive_status")
    return [each.name for each in found]
