"""Backups, archiving and drills as metrics, from the plan and the evidence that `provision backup` leaves. Pure.

Nothing is computed again: moments are given as they are, so that an alert compares them with the clock of Prometheus
and also fires when the evidence itself is no longer renewed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from provision.host.metrics.exposition import Metric, single
from provision.plan.schema import Backup
from provision.system import moment

MB = 2**20
HOUR_S, DAY_S = 3600, 86400
UNFINISHED = "it was begun and has not ended"
"""What the evidence says while a drill is at work. One that was killed fails its unit, and grows too old."""
_TAKEN = "provision_backup_last_completed_timestamp_seconds"


def metrics(plan: Backup, backup: Mapping[str, Any], drill: Mapping[str, Any]) -> list[Metric]:
    """Convert the plan and the evidence files `backup` and `drill` ({} if there is none)."""
    return [*_limits(plan), *_backups(plan, backup), *_archiving(plan, backup), *_drill(drill)]


def _limits(plan: Backup) -> list[Metric]:
    return [
        single("provision_backup_age_limit_seconds", "Age that the newest backup may reach; no sample is no limit.",
               HOUR_S * plan.age_limit_h or None),
        single("provision_drill_age_limit_seconds", "Age that the last passed drill may reach; no sample is no limit.",
               HOUR_S * plan.drill_age_limit_h or None),
    ]  # fmt: skip


def _backups(plan: Backup, backup: Mapping[str, Any]) -> list[Metric]:
    sets, dumps, place = backup.get("sets", []), backup.get("dumps", []), backup.get("repository", {})
    newest: dict[str, float] = {}
    for each in sets:
        newest[each["kind"]] = max(float(each["stop"]), newest.get(each["kind"], 0.0))
    if dumps:
        newest["logical"] = max(moment(each["taken"]) for each in dumps)
    physical = plan.physical and "sets" in backup
    damaged = [each["label"] for each in sets if each["damaged"]]
    return [
        single("provision_backup_evidence_timestamp_seconds", "When `provision backup status` last looked.",
               moment(backup["when"]) if "when" in backup else None),
        Metric(_TAKEN, "When the newest backup of a kind ended.",
               tuple(({"kind": kind}, at) for kind, at in sorted(newest.items()))),
        # From it on a drill could have passed: where none ever did, its age is counted from here.
        single("provision_backup_first_completed_timestamp_seconds", "When the oldest backup of the repository ended.",
               min(float(each["stop"]) for each in sets) if sets else None),
        single("provision_backup_sets", "Backups in the repository.", len(sets) if physical else None),
        single("provision_backup_broken_sets", "Backups that cannot be restored: WAL is missing, or pages are damaged.",
               len({*backup.get("broken", []), *damaged}) if physical else None),
        single("provision_backup_wal_gap", "1 when WAL is missing from the archive behind the newest backup.",
               bool(backup.get("gap")) if physical else None),
        single("provision_backup_alarms", "What `provision backup status` finds wrong.",
               len(backup["alarms"]) if "alarms" in backup else None),
        single("provision_backup_repository_bytes", "Size of the repository.", place.get("bytes")),
        single("provision_backup_repository_free_bytes", "Space left beside the repository, where that can be asked.",
               place.get("free_bytes")),
        single("provision_backup_repository_full_seconds", "Time until it is full, as it has grown so far.",
               DAY_S * place["days_until_full"] if "days_until_full" in place else None),
        single("provision_backup_full_set_bytes", "Size in the repository of the largest full backup.",
               max((each["repository_size"] for each in sets if each["kind"] == "full"), default=None)),
    ]  # fmt: skip


def _archiving(plan: Backup, backup: Mapping[str, Any]) -> list[Metric]:
    wal = backup.get("wal", {})
    return [
        single("provision_wal_waiting_bytes", "WAL that waits to be archived.",
               MB * wal["waiting_mb"] if "waiting_mb" in wal else None),
        single("provision_wal_queue_limit_bytes", "WAL that may wait before it is dropped; no sample is never.",
               MB * plan.queue_max_mb or None),
    ]  # fmt: skip


def _drill(drill: Mapping[str, Any]) -> list[Metric]:
    passed = (drill.get("last_passed") or {}).get("when")
    over = "passed" in drill and drill.get("failure") != UNFINISHED
    return [
        single("provision_drill_last_timestamp_seconds", "When the last drill ended.",
               moment(drill["when"]) if "when" in drill else None),
        single("provision_drill_last_success", "1 when the last drill passed.",
               bool(drill["passed"]) if over else None),
        single("provision_drill_last_passed_timestamp_seconds", "When a drill last passed.",
               moment(passed) if passed else None),
        single("provision_drill_recovery_seconds", "How long the last drill took to restore and recover (RTO).",
               drill.get("rto_s")),
        single("provision_drill_lost_seconds", "Work that would have been lost at the last drill (RPO).",
               drill.get("rpo_s")),
    ]  # fmt: skip
