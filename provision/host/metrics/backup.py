"""Metrics of backups, archiving and restore tests, from the plan and the evidence of `provision backup`. Pure.

Samples of the second repository have the label `repository`; those of the first have none.
Times are exported as timestamps, not ages: an alert compares them with Prometheus' clock and also fires if the evidence
is no longer updated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from provision.host.backup.scratch_cluster import KILLED
from provision.host.metrics.exposition import Metric, single
from provision.plan.schema import Backup
from provision.system import moment

MB = 2**20
HOUR_S, DAY_S = 3600, 86400
_TAKEN = "provision_backup_last_completed_timestamp_seconds"


def metrics(
    plan: Backup, backup: Mapping[str, Any], drill: Mapping[str, Any], second: Mapping[str, Any] | None = None
) -> list[Metric]:
    """Convert the plan and the evidence files `backup`, `drill` and `drill-2`, `second` ({} if there is none)."""
    sets, tests = _backups(plan, backup), _drill(drill)
    if view := backup.get("second"):
        sets, tests = _with(sets, _backups(plan, view)), _with(tests, _drill(second or {}))
    return [*_limits(plan), *sets, *_archiving(plan, backup), *tests, *_dump_drill(backup.get("dump_drill") or {})]


def _with(first: list[Metric], second: list[Metric]) -> list[Metric]:
    """Add the second repository's samples to the metrics of the first."""
    return [
        replace(one, samples=(*one.samples, *(({**labels, "repository": "2"}, value) for labels, value in two.samples)))
        for one, two in zip(first, second, strict=True)
    ]


def _limits(plan: Backup) -> list[Metric]:
    return [
        single("provision_backup_age_limit_seconds", "Maximum age of the newest backup; no sample: no limit.",
               HOUR_S * plan.age_limit_h or None),
        single("provision_drill_age_limit_seconds", "Maximum age of the last passed restore test; no sample: no limit.",
               HOUR_S * plan.drill_age_limit_h or None),
    ]  # fmt: skip


def _backups(plan: Backup, backup: Mapping[str, Any]) -> list[Metric]:
    sets, dumps, place = backup.get("sets", []), backup.get("dumps", []), backup.get("repository", {})
    newest: dict[str, float] = {}
    for each in sets:
        newest[each["kind"]] = max(float(each["stop"]), newest.get(each["kind"], 0.0))
    if dumps:  # only in the first repository's evidence
        newest["logical"] = max(moment(each["taken"]) for each in dumps)
    physical = plan.physical and "sets" in backup
    damaged = [each["label"] for each in sets if each["damaged"]]
    return [
        single("provision_backup_evidence_timestamp_seconds", "When `provision backup status` last ran.",
               moment(backup["when"]) if "alarms" in backup else None),
        Metric(_TAKEN, "When the newest backup of a kind ended.",
               tuple(({"kind": kind}, at) for kind, at in sorted(newest.items()))),
        # The age of the last restore test counts from here if none has ever passed.
        single("provision_backup_first_completed_timestamp_seconds", "When the oldest backup of the repository ended.",
               min(float(each["stop"]) for each in sets) if sets else None),
        single("provision_backup_sets", "Backups in the repository.", len(sets) if physical else None),
        single("provision_backup_broken_sets", "Backups with missing WAL or damaged pages.",
               len({*backup.get("broken", []), *damaged}) if physical else None),
        single("provision_backup_wal_gap", "1 if WAL after the newest backup is missing from the archive.",
               bool(backup.get("gap")) if physical else None),
        single("provision_backup_alarms", "Number of alarms of `provision backup status`.",
               len(backup["alarms"]) if "alarms" in backup else None),
        single("provision_backup_repository_bytes", "Size of the repository.", place.get("bytes")),
        single("provision_backup_repository_free_bytes", "Free space of the repository's file system, if known.",
               place.get("free_bytes")),
        single("provision_backup_repository_full_seconds", "Time until the repository is full at its present growth.",
               DAY_S * place["days_until_full"] if "days_until_full" in place else None),
        single("provision_backup_full_set_bytes", "Repository size of the largest full backup.",
               max((each["repository_size"] for each in sets if each["kind"] == "full"), default=None)),
    ]  # fmt: skip


def _archiving(plan: Backup, backup: Mapping[str, Any]) -> list[Metric]:
    wal = backup.get("wal", {})
    return [
        single("provision_wal_waiting_bytes", "WAL waiting to be archived.",
               MB * wal["waiting_mb"] if "waiting_mb" in wal else None),
        single("provision_wal_queue_limit_bytes", "Limit of waiting WAL before it is dropped; no sample: no limit.",
               MB * plan.queue_max_mb or None),
    ]  # fmt: skip


def _drill(drill: Mapping[str, Any]) -> list[Metric]:
    passed = (drill.get("last_passed") or {}).get("when")
    over = "passed" in drill and drill.get("failure") != KILLED
    return [
        single("provision_drill_last_timestamp_seconds", "When the last restore test started.",
               moment(drill["when"]) if "when" in drill else None),
        single("provision_drill_last_success", "1 if the last restore test passed.",
               bool(drill["passed"]) if over else None),
        single("provision_drill_last_passed_timestamp_seconds", "When a restore test last passed.",
               moment(passed) if passed else None),
        single("provision_drill_recovery_seconds", "Time to restore and recover in the last restore test (RTO).",
               drill.get("rto_s")),
        single("provision_drill_lost_seconds", "Work that would have been lost at the last restore test (RPO).",
               drill.get("rpo_s")),
    ]  # fmt: skip


def _dump_drill(tested: Mapping[str, Any]) -> list[Metric]:
    """Convert what the watch recorded of the restore tests of dumps."""
    passed = (tested.get("last_passed") or {}).get("when")
    over = tested.get("passed") is not None and tested.get("failure") != KILLED
    return [
        single("provision_dump_drill_last_success", "1 if the last restore test of a dump passed.",
               bool(tested["passed"]) if over else None),
        single("provision_dump_drill_last_passed_timestamp_seconds", "When a restore test of a dump last passed.",
               moment(passed) if passed else None),
        single("provision_dump_drill_newest_untested", "1 if no restore test of the newest dump has passed.",
               bool(tested["untested"]) if "untested" in tested else None),
    ]  # fmt: skip
