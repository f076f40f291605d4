"""Take a physical backup with reference counts for its restore test; prepare a stanza.

Does IO as postgres. The counts are taken at a restore point after the backup has ended, because recovery of a set can
stop no earlier than the end of its backup. A role of the database can prevent the counts with an open transaction, but
not the backup: the set then has none, the result says so, and `provision backup status` raises an alarm in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from provision import system
from provision.database import connect_pinned
from provision.errors import DatabaseError, HostError
from provision.host.backup import counts, journal, shared, tool
from provision.host.backup.tool import BackupError, Set
from provision.host.upgrade import journal as upgrades
from provision.plan.schema import Plan, Repository

KINDS = ("full", "diff", "incr")


def physical(
    plan: Plan, kind: str, number: int = 0, *, narrate: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Take a backup in each repository, or in the one of a number. Return the sets and the restore command.

    The result has the fields of the first new set, and each set with its repository in `sets`; `uncounted` is why the
    sets have no reference counts, "" if they have. A repository that fails does not prevent the backup in the other.
    Raises BackupError, HostError.
    """
    tool.need_physical(plan)
    journal.refuse_unfinished(plan.server.data)
    begun = time.time()
    taken: list[tuple[Repository, Set]] = []
    failures: list[BackupError] = []
    known: dict[str, Any] = {}
    point, uncounted = "", ""
    for repository in plan.backup.chosen(number):
        narrate(f"taking a {kind} backup into {repository.place}")
        try:
            stanza, newest = _take(plan, kind, repository)
        except BackupError as error:
            failures.append(error)
        else:
            taken.append((repository, newest))
            known[newest.label] = {"system": stanza.systems[newest.database]}
    if taken:
        narrate("counting rows for the restore test")
        try:
            point = _count(plan, known)
        except DatabaseError as error:
            uncounted = str(error)
        _expire(plan, [repository for repository, _ in taken], narrate)
    if failures:
        raise _failure(plan, failures, taken)
    return {
        **asdict(taken[0][1]),
        "sets": [{"repository": each.number, "place": each.place, **asdict(new)} for each, new in taken],
        "seconds": round(time.time() - begun, 1),
        "point": point,
        "uncounted": uncounted,
        "restore": plan.site(playbook="restore.yml", extra=f"-e restore_set={taken[0][1].label}"),
    }


def _expire(plan: Plan, repositories: list[Repository], narrate: Callable[[str], None]) -> None:
    """Remove expired backups; none while an upgrade's old cluster is kept, because they reach moments before it."""
    if upgrades.kept(facts := upgrades.read()):
        narrate(f"no backup expires until the kept cluster is released ({upgrades.described(facts)})")
        return
    narrate("removing expired backups")
    for repository in repositories:
        tool.program_with_lock(plan.backup.stanza, f"--repo={repository.number}", "expire")


def _take(plan: Plan, kind: str, repository: Repository) -> tuple[tool.Repository, Set]:
    """Take a backup in one repository and check that it has a new, sound set. Raises BackupError."""
    stanza, number = plan.backup.stanza, repository.number
    # Compare labels, not times: clocks jump.
    before = {each.label for each in tool.info(stanza, number).sets}
    # Expire only after the new set has been checked: a damaged set must not push out the last good one.
    done = tool.program(stanza, f"--repo={number}", f"--type={kind}", "--no-expire-auto", "backup", quiet=True)
    if done.returncode == tool.LOCKED:
        raise BackupError(
            "another backup of this host is running", seen=tool.reason(done), run="provision backup status"
        )
    if done.returncode != 0:
        # pgBackRest reports that WAL did not arrive, but not why.
        why = tool.not_archived(stanza, several=len(plan.backup.repositories) > 1)
        raise BackupError(
            f"the {kind} backup failed",
            where=f"stanza {stanza}, {repository.place}",
            seen=tool.reason(done) + (f"; WAL is not archived: {why}" if why else ""),
            allowed="older sets are unchanged; the next backup resumes this one",
            run="provision backup status",
        )
    after = tool.info(stanza, number)
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
    return after, newest


def _count(plan: Plan, new: dict[str, Any]) -> str:
    """Keep reference counts for new sets, by label; return their restore point, which follows the end of every set."""
    point = f"provision-{system.compact()}"
    found = counts.take(plan.server.url(plan.access.database), point)
    with connect_pinned(plan.server.url("postgres"), application="provision backup") as connection:
        connection.execute("SELECT pg_switch_wal()")
    known = system.evidence(shared.FIGURES).get("sets", {})
    known |= {label: {"taken": system.stamp(), **about, **found} for label, about in new.items()}
    system.keep(shared.FIGURES, {"sets": dict(sorted(known.items())[-shared.SETS_KEPT :])})
    shared.sync(plan)
    return point


def _failure(plan: Plan, failures: list[BackupError], taken: list[tuple[Repository, Set]]) -> BackupError:
    """Return one error for all repositories that failed, with the sets that the others have."""
    if len(failures) == 1 and not taken:
        return failures[0]
    have = "; ".join(f"repository {each.number} has the new set {new.label}" for each, new in taken)
    return BackupError(
        f"the backup failed in {len(failures)} of {len(failures) + len(taken)} repositories",
        where=f"stanza {plan.backup.stanza}",
        seen="; ".join(f"{each.where}: {each.what}: {each.seen}" for each in failures),
        allowed=have,
        run="provision backup status",
    )


def prepare(plan: Plan, take_over: str = "") -> dict[str, Any]:
    """Create or upgrade the stanza and check that WAL reaches the repository. Return the number of sets.

    Raises BackupError, HostError. A second run changes nothing. `take_over` names this host's stanza to continue it
    although it holds backups of another cluster.
    """
    tool.need_physical(plan)
    stanzas = [_known(plan, each) for each in plan.backup.repositories]
    changed = False
    with connect_pinned(plan.server.url("postgres"), application="provision backup") as connection:
        row = connection.execute(
            "SELECT current_setting('archive_mode'), current_setting('archive_command'),"
            " (SELECT system_identifier FROM pg_control_system()),"
            " (SELECT last_archived_time > coalesce(last_failed_time, '-infinity') FROM pg_stat_archiver)"
        ).fetchone()
    assert row is not None  # noqa: S101 - the query gives a row or raises
    mode, command, identifier, healthy = row
    foreign = [each for each in stanzas if each and each.majors and each.systems.get(each.current) != identifier]
    for each in foreign:
        _ours(plan, each, int(str(identifier)), take_over)
    if foreign or not all(each and each.majors for each in stanzas):
        # Both commands prepare every repository, and leave alone the one that is ready.
        tool.program_with_lock(plan.backup.stanza, "stanza-upgrade" if foreign else "stanza-create")
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
    # The fewest: the first backup goes to every repository.
    sets = min(0 if each is None or changed else len(each.sets) for each in stanzas)
    places = " and ".join(each.place for each in plan.backup.repositories)
    return {"changed": changed, "stanza": plan.backup.stanza, "repository": places, "sets": sets}


def _known(plan: Plan, repository: Repository) -> tool.Repository | None:
    """Return the stanza in a repository; None where it cannot be read, which the check of archiving explains."""
    try:
        return tool.info(plan.backup.stanza, repository.number)
    except BackupError:
        return None


def _ours(plan: Plan, known: tool.Repository, identifier: int, take_over: str) -> None:
    """Raise HostError if the stanza holds backups of another cluster: continuing it would expire them.

    Causes: two hosts share a name, or the host was rebuilt after it lost its data. Allowed without `take_over` if
    `provision restore` restored this cluster from another host's stanza, or `provision upgrade` made it of the other.
    """
    last = journal.read(journal.IN_PLACE)
    if not known.sets or upgrades.continues(identifier):
        return
    if take_over == plan.backup.stanza or (
        last.get("stanza") != plan.backup.stanza and last.get("system") == identifier
    ):
        return
    raise HostError(
        f"stanza {plan.backup.stanza} holds backups of another cluster",
        where=plan.backup.chosen(known.number)[0].place,
        seen=f"system identifier {known.systems[known.current]}, this server has {identifier}; {len(known.sets)} sets",
        allowed="the cluster of these backups (restore it with `restore.yml -e restore_confirm=HOST`); "
        "or another stanza name (backup_stanza)",
        run=f"provision backup prepare --take-over {plan.backup.stanza}; its backups then expire",
    )
