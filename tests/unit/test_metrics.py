"""Metrics for Prometheus: the text format, and the conversion of evidence, pools and certificates."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from provision.errors import HostError, UsageError
from provision.host.backup.scratch_cluster import KILLED
from provision.host.metrics import backup, certificates, pooler
from provision.host.metrics.exposition import Metric, render, single
from tests.plans import sample

PLAN = sample(backup={"age_limit_h": 26, "drill_age_limit_h": 50, "queue_max_mb": 100}).backup
FULL = {"label": "A", "kind": "full", "stop": 1000, "repository_size": 70, "damaged": False}
INCR = {"label": "B", "kind": "incr", "stop": 2000, "repository_size": 5, "damaged": False}
BACKUP = {
    "when": "1970-01-01T01:00:00+00:00",
    "sets": [FULL, INCR],
    "broken": ["B"],
    "gap": "",
    "repository": {"bytes": 75, "free_bytes": 500, "days_until_full": 2.5},
    "wal": {"waiting_mb": 32},
    "dumps": [{"taken": "1970-01-01T00:50:00+00:00"}],
    "alarms": ["one"],
}


def values(metrics: list[Metric]) -> dict[str, float]:
    """Samples without labels by name."""
    return {each.name: each.samples[0][1] for each in metrics if each.samples and not each.samples[0][0]}


def test_text_is_what_prometheus_reads() -> None:
    text = render([Metric("a_total", "Line\nand \\.", (({"x": 'q"\n\\'}, 1.5), ({"x": "y"}, 2)), kind="counter")])
    assert text == (
        '# HELP a_total Line\\nand \\\\.\n# TYPE a_total counter\na_total{x="q\\"\\n\\\\"} 1.5\na_total{x="y"} 2\n'
    )


def test_what_is_unknown_has_no_sample_and_no_heading() -> None:
    assert render([single("a", "A.", None), single("b", "B.", 0)]) == "# HELP b B.\n# TYPE b gauge\nb 0\n"


def test_moments_keep_their_seconds() -> None:
    assert "a 1795526725\n" in render([single("a", "A.", 1795526725.0)])


@pytest.mark.parametrize(
    "bad", [[single("a-b", "", 1)], [Metric("a", "", (({"x-y": "1"}, 1),))], [single("a", "", 1)] * 2]
)
def test_what_prometheus_would_refuse_is_refused(bad: list[Metric]) -> None:
    with pytest.raises(UsageError, match="Prometheus would reject this metric"):
        render(bad)


def test_backups_become_moments_and_bytes() -> None:
    found = backup.metrics(PLAN, BACKUP, {})
    taken = next(each for each in found if each.name == "provision_backup_last_completed_timestamp_seconds")
    assert taken.samples == (({"kind": "full"}, 1000.0), ({"kind": "incr"}, 2000.0), ({"kind": "logical"}, 3000.0))
    assert values(found) == {
        "provision_backup_age_limit_seconds": 93600,
        "provision_drill_age_limit_seconds": 180000,
        "provision_backup_evidence_timestamp_seconds": 3600,
        "provision_backup_first_completed_timestamp_seconds": 1000,
        "provision_backup_sets": 2,
        "provision_backup_broken_sets": 1,
        "provision_backup_wal_gap": 0,
        "provision_backup_alarms": 1,
        "provision_backup_repository_bytes": 75,
        "provision_backup_repository_free_bytes": 500,
        "provision_backup_repository_full_seconds": 216000,
        "provision_backup_full_set_bytes": 70,
        "provision_wal_waiting_bytes": 33554432,
        "provision_wal_queue_limit_bytes": 104857600,
    }


def test_samples_of_the_second_repository_name_it() -> None:
    view = {"when": BACKUP["when"], "repository": {"bytes": 40}, "sets": [FULL], "gap": "0" * 24}
    drill = {"when": "1970-01-02T00:00:00+00:00", "passed": False, "last_passed": None}
    found = {each.name: each.samples for each in backup.metrics(PLAN, {**BACKUP, "second": view}, {}, drill)}
    second = {"repository": "2"}
    assert found["provision_backup_last_completed_timestamp_seconds"][-1] == ({"kind": "full", **second}, 1000.0)
    assert found["provision_backup_sets"] == (({}, 2), (second, 1))
    assert found["provision_backup_wal_gap"] == (({}, False), (second, True))
    assert found["provision_backup_repository_bytes"] == (({}, 75), (second, 40))
    assert found["provision_drill_last_success"] == ((second, False),)
    # One watch, one report.
    assert found["provision_backup_evidence_timestamp_seconds"] == (({}, 3600.0),)
    assert found["provision_backup_alarms"] == (({}, 1),)
    render(backup.metrics(PLAN, {**BACKUP, "second": view}, {}, drill))


def test_damaged_pages_and_gaps_are_counted() -> None:
    seen = {**BACKUP, "sets": [{**FULL, "damaged": True}, INCR], "gap": "0" * 24}
    found = values(backup.metrics(PLAN, seen, {}))
    assert found["provision_backup_broken_sets"] == 2
    assert found["provision_backup_wal_gap"] == 1


def test_a_host_without_evidence_tells_its_limits_alone_and_one_without_limits_nothing() -> None:
    assert set(values(backup.metrics(PLAN, {}, {}))) == {
        "provision_backup_age_limit_seconds",
        "provision_drill_age_limit_seconds",
        "provision_wal_queue_limit_bytes",
    }
    assert values(backup.metrics(replace(PLAN, age_limit_h=0, drill_age_limit_h=0, queue_max_mb=0), {}, {})) == {}


def test_a_failed_drill_keeps_the_moment_of_the_last_that_passed() -> None:
    drill = {
        "when": "1970-01-02T00:00:00+00:00",
        "passed": False,
        "last_passed": {"when": "1970-01-01T00:00:10+00:00"},
        "rto_s": 12.5,
        "rpo_s": None,
    }
    found = values(backup.metrics(PLAN, {}, drill))
    assert found["provision_drill_last_timestamp_seconds"] == 86400
    assert found["provision_drill_last_success"] == 0
    assert found["provision_drill_last_passed_timestamp_seconds"] == 10
    assert found["provision_drill_recovery_seconds"] == 12.5
    assert "provision_drill_lost_seconds" not in found


def test_a_drill_that_is_at_work_has_neither_passed_nor_failed() -> None:
    drill = {"when": "1970-01-02T00:00:00+00:00", "passed": False, "failure": KILLED, "last_passed": None}
    assert "provision_drill_last_success" not in values(backup.metrics(PLAN, {}, drill))


def test_pools_have_the_names_of_the_usual_exporter_and_seconds() -> None:
    row = {
        "cl_active": 3,
        "cl_waiting": 2,
        "sv_active": 4,
        "sv_idle": 1,
        "sv_login": 0,
        "maxwait": 5,
        "maxwait_us": 500000,
    }
    stats = {"total_xact_count": 7, "total_query_count": 9, "total_wait_time": 2500000, "total_query_time": 1000000}
    text = render(
        pooler.metrics(
            [
                {**row, "database": "minion", "user": "minion_app"},
                {**row, "database": "pgbouncer", "user": "pgbouncer"},
            ],
            [{**stats, "database": "minion"}, {**stats, "database": "pgbouncer"}],
            [{"key": "max_client_conn", "value": "1000"}],
        )
    )
    assert "pgbouncer_up 1\n" in text
    assert 'pgbouncer_pools_client_waiting_connections{database="minion",user="minion_app"} 2\n' in text
    assert 'pgbouncer_pools_client_maxwait_seconds{database="minion",user="minion_app"} 5.5\n' in text
    assert 'pgbouncer_stats_client_wait_seconds_total{database="minion"} 2.5\n' in text
    assert "pgbouncer_config_max_client_connections 1000\n" in text
    assert 'database="pgbouncer"' not in text


def test_certificates_tell_their_end_and_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a", "-days", "10"]
    files = ["-keyout", str(tmp_path / "a.key"), "-out", str(tmp_path / "a.crt")]
    made = subprocess.run(["openssl", "req", "-x509", *kind, *files], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    (found,) = certificates.metrics(tmp_path)
    ((labels, ends),) = found.samples
    assert labels == {"certificate": str(tmp_path / "a.crt")}
    assert 0 <= (tmp_path / "a.crt").stat().st_mtime + 10 * 86400 - ends < 60
    (tmp_path / "b.crt").write_text("nothing")
    with pytest.raises(HostError) as refused:
        certificates.metrics(tmp_path)
    assert refused.value.where == str(tmp_path / "b.crt")


def test_a_failed_restore_test_of_a_dump_is_exported_with_the_last_that_passed() -> None:
    tested = {
        "when": "1970-01-02T00:00:00+00:00",
        "passed": False,
        "failure": "the dump could not be restored",
        "last_passed": {"when": "1970-01-01T00:00:10+00:00", "dump": "minion-19700101T000000Z"},
        "untested": "minion-19700102T000000Z",
    }
    found = values(backup.metrics(PLAN, {**BACKUP, "dump_drill": tested}, {}))
    assert found["provision_dump_drill_last_success"] == 0
    assert found["provision_dump_drill_last_passed_timestamp_seconds"] == 10
    assert found["provision_dump_drill_newest_untested"] == 1
    running: dict[str, object] = {**BACKUP, "dump_drill": {**tested, "failure": KILLED}}
    assert "provision_dump_drill_last_success" not in values(backup.metrics(PLAN, running, {}))
