"""Take a physical backup and the figures that prove it later; make a stanza ready.

Does IO as postgres. The figures are taken after the backup has ended, at a restore point behind it, for only there a
recovery of this very set can stop.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import HostError
from provision.host.backup import figures, journal, tool
from provision.host.backup.tool import BackupError
from provision.plan.schema import Plan

KINDS = ("full", "diff", "incr")
FIGURES_KEPT = 60
LOCKED = 50  # pgBackRest's exit code when another of its commands holds the stanza's lock


def physical(plan: Plan, kind: str) -> dict[str, Any]:
    """Take a backup; give its set, size, duration, WAL range and the command that restores it. Raises BackupError."""
    tool.need_physical(plan)
    journal.refuse_unfinished(plan.server.data)
    begun = time.time()
    # By label, not by time: clocks jump.
    before = {each.label for each in tool.info(plan.backup.stanza).sets}
    # Nothing expires before the new set is known to be sound: damaged pages would push the last whole set out.
    done = tool.program(plan.backup.stanza, f"--type={kind}", "--no-expire-auto", "backup", quiet=True)
    if done.returncode == LOCKED:
        raise BackupError("another backup of this host runs", seen=tool.reason(done), run="provision backup status")
    if done.returncode != 0:
        # A backup waits for its WAL and does not know why that does not come.
        why = tool.not_archived(plan.backup.stanza)
        raise BackupError(
            f"the {kind} backup was not taken",
            where=f"stanza {plan.backup.stanza}, {plan.backup.repository.place}",
            seen=tool.reason(done) + (f"; WAL waits: {why}" if why else ""),
            allowed="older sets are untouched; the next backup goes on where this one stopped",
            run="provision backup status",
        )
    after = tool.info(plan.backup.stanza)
    newest = after.sets[-1]
    if newest.label in before:
        raise BackupError("pgBackRest reported success, but the repository has no new set", seen=newest.label)
    if newest.damaged:
        raise BackupError(
            "the backup holds pages whose checksum is wrong: the data directory itself is damaged",
            where=newest.label,
            allowed="older sets, none of which expires until a sound one is taken",
            run="docs/the-repository-is-damaged.md",
        )
    point = f"provision-{system.compact()}"
    found = figures.take(plan.server.url(plan.access.database), point)
    with connect_pinned(plan.server.url("postgres"), application="provision backup") as connection:
        connection.execute("SELECT pg_switch_wal()")
    known = system.evidence("backup-figures").get("sets", {})
    known[newest.label] = {"taken": system.stamp(), "system": after.systems[newest.database], **found}
    system.keep("backup-figures", {"sets": dict(sorted(known.items())[-FIGURES_KEPT:])})
    tool.program(plan.backup.stanza, "expire")
    return {
        **asdict(newest),
        "seconds": round(time.time() - begun, 1),
        "point": point,
        "restore": plan.site(playbook="restore.yml", extra=f"-e restore_set={newest.label}"),
    }


def prepare(plan: Plan, take_over: str = "") -> dict[str, Any]:
    """Make the stanza, and see a segment of WAL arrive in the repository; tell how many sets are there.

    Raises BackupError and HostError. A second run only looks. `take_over` names a stanza of another cluster that this
    one is to continue.
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
            "PostgreSQL does not archive its WAL yet",
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
    """Raise HostError for a stanza of another cluster: to continue it would expire that cluster's backups.

    Two hosts of one name, and a host that was made anew after its data was lost, look like this. A host whose data came
    from another stanza by a restore of ours may continue its own.
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
        allowed="its own cluster, which `restore.yml -e restore_confirm=HOST` brings back here; "
        "or a stanza of this host's own (backup_stanza)",
        run=f"provision backup prepare --take-over {plan.backup.stanza}; its backups then expire",
    )
