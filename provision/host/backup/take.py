"""Take a physical backup with reference counts for its restore test; prepare a stanza.

Does IO as postgres. The counts are taken at a restore point after the backup has ended, because recovery of a set can
stop no earlier than the end of its backup.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import HostError
from provision.host.backup import counts, journal, shared, tool
from provision.host.backup.tool import BackupError
from provision.plan.schema import Plan

KINDS = ("full", "diff", "incr")
LOCKED = 50  # pgBackRest's exit code when another command holds the stanza's lock


def physical(plan: Plan, kind: str) -> dict[str, Any]:
    """Take a backup. Return its set, size, duration, WAL range and restore command. Raises BackupError, HostError."""
    tool.need_physical(plan)
    journal.refuse_unfinished(plan.server.data)
    begun = time.time()
    # Compare labels, not times: clocks jump.
    before = {each.label for each in tool.info(plan.backup.stanza).sets}
    # Expire only after the new set has been checked: a damaged set must not push out the last good one.
    done = tool.program(plan.backup.stanza, f"--type={kind}", "--no-expire-auto", "backup", quiet=True)
    if done.returncode == LOCKED:
        raise BackupError(
            "another backup of this host is running", seen=tool.reason(done), run="provision backup status"
        )
    if done.returncode != 0:
        # pgBackRest reports that WAL did not arrive, but not why.
        why = tool.not_archived(plan.backup.stanza)
        raise BackupError(
            f"the {kind} backup failed",
            where=f"stanza {plan.backup.stanza}, {plan.backup.repository.place}",
            seen=tool.reason(done) + (f"; WAL is not archived: {why}" if why else ""),
            allowed="older sets are unchanged; the next backup resumes this one",
            run="provision backup status",
        )
    after = tool.info(plan.backup.stanza)
    newest = after.sets[-1]
    if newest.label in before:
        raise BackupError("pgBackRest reported success but the repository has no new set", seen=newest.label)
    if newest.damaged:
        raise BackupError(
            "the backup contains pages with wrong checksums: the data directory is damaged",
            where=newest.label,
            allowed="older sets, which do not expire until a good backup is taken",
            run="docs/the-repository-is-damaged.md",
        )
    point = f"provision-{system.compact()}"
    found = counts.take(plan.server.url(plan.access.database), point)
    with connect_pinned(plan.server.url("postgres"), application="provision backup") as connection:
        connection.execute("SELECT pg_switch_wal()")
    known = system.evidence(shared.FIGURES).get("sets", {})
    known[newest.label] = {"taken": system.stamp(), "system": after.systems[newest.database], **found}
    system.keep(shared.FIGURES, {"sets": dict(sorted(known.items())[-shared.SETS_KEPT :])})
    shared.sync(plan)
    tool.program(plan.backup.stanza, "expire")
    return {
        **asdict(newest),
        "seconds": round(time.time() - begun, 1),
        "point": point,
        "restore": plan.site(playbook="restore.yml", extra=f"-e restore_set={newest.label}"),
    }


def prepare(plan: Plan, take_over: str = "") -> dict[str, Any]:
    """Create or upgrade the stanza and check that WAL reaches the repository. Return the number of sets.

    Raises BackupError, HostError. A second run changes nothing. `take_over` names this host's stanza to continue it
    although it holds backups of another cluster.
    """
    tool.need_physical(plan)
    try:
        known = tool.info(plan.backup.stanza)
    except BackupError:
        known = None
    changed = False
    with connect_pinned(plan.server.url("postgres"), application="provision backup") as connection:
        row = connection.execute(
            "SELECT current_setting('archive_mode'), current_setting('archive_command'),"
            " (SELECT system_identifier FROM pg_control_system()),"
            " (SELECT last_archived_time > coalesce(last_failed_time, '-infinity') FROM pg_stat_archiver)"
        ).fetchone()
    assert row is not None  # noqa: S101 - the query gives a row or raises
    mode, command, identifier, healthy = row
    if known is None or known.systems.get(known.current) != identifier:
        if known and known.majors:
            _ours(plan, known, int(str(identifier)), take_over)
        tool.program(plan.backup.stanza, "stanza-upgrade" if known and known.majors else "stanza-create")
        changed = True
    if mode != "on" or "archive-push" not in str(command):
        raise HostError(
            "PostgreSQL does not archive WAL yet",
            where=f"port {plan.server.port}",
            seen=f"archive_mode is {mode}, archive_command is {command}",
            allowed="archive_mode = on, which needs a restart",
            run=plan.site(extra="-e postgresql_restart_allowed=true"),
        )
    if changed or not healthy:
        tool.program(plan.backup.stanza, "--archive-timeout=60", "check")
    sets = 0 if known is None or changed else len(known.sets)
    return {"changed": changed, "stanza": plan.backup.stanza, "repository": plan.backup.repository.place, "sets": sets}


def _ours(plan: Plan, known: tool.Repository, identifier: int, take_over: str) -> None:
    """Raise HostError if the stanza holds backups of another cluster: continuing it would expire them.

    Causes: two hosts share a name, or the host was rebuilt after it lost its data. Allowed without `take_over` if
    `provision restore` restored this cluster from another host's stanza.
    """
    last = journal.read(journal.IN_PLACE)
    if not known.sets:
        return
    if take_over == plan.backup.stanza or (
        last.get("stanza") != plan.backup.stanza and last.get("system") == identifier
    ):
        return
    raise HostError(
        f"stanza {plan.backup.stanza} holds backups of another cluster",
        where=plan.backup.repository.place,
        seen=f"system identifier {known.systems[known.current]}, this server has {identifier}; {len(known.sets)} sets",
        allowed="the cluster of these backups (restore it with `restore.yml -e restore_confirm=HOST`); "
        "or another stanza name (backup_stanza)",
        run=f"provision backup prepare --take-over {plan.backup.stanza}; its backups then expire",
    )
