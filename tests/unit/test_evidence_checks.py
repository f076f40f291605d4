"""Checks of backups, restore tests and maintenance judge the evidence of their last runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from provision import system
from provision.checks import units
from provision.checks.finding import Finding
from provision.checks.registry import Scope, examine
from provision.plan import load
from tests.plans import sample, write

HOUR_S = 3600


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in place of the host's evidence, and the plan beside it."""
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    monkeypatch.setattr(load, "PATH", write(tmp_path / "plan.json", sample()))
    return tmp_path


def found(check: str, **sections: dict[str, Any]) -> list[Finding]:
    plan = sample(**sections)
    return [each for each in examine(Scope.HOST, plan, site=plan.site) if each.id == check]


def seen(check: str, **sections: dict[str, Any]) -> list[str]:
    return [each.seen for each in found(check, **sections)]


def watch(age_s: float = 0, **facts: Any) -> None:
    system.keep("backup", {"when": system.stamp(time.time() - age_s), **facts})


def test_recent_evidence_has_no_findings() -> None:
    watch(sets=[{"stop": time.time() - HOUR_S}], alarms=[])
    system.keep("drill", {"when": system.stamp(time.time() - HOUR_S), "passed": True})
    system.keep(
        "maintain", {"jobs": {"retention": {"outcome": "done", "last_done": system.stamp(time.time() - HOUR_S)}}}
    )
    assert seen("backup") + seen("drill") + seen("maintenance") == []


def test_a_watch_without_evidence_is_overdue_after_half_an_hour(host: Path) -> None:
    assert seen("backup") == []
    os.utime(host / "plan.json", (time.time() - 2 * HOUR_S, time.time() - 2 * HOUR_S))
    (finding,) = found("backup")
    assert finding.seen == "the backup watch has left no evidence"
    assert finding.fix == "systemctl start provision-backup-watch.service"


def test_reports_a_stopped_watch() -> None:
    watch(age_s=2 * HOUR_S)
    assert seen("backup") == ["the backup watch ran 2.0 h ago; its interval is five minutes"]


def test_reports_an_old_backup_by_the_limit_of_the_plan() -> None:
    watch(sets=[{"stop": time.time() - 30 * HOUR_S}])
    assert seen("backup") == ["the newest backup is 30.0 h old; the limit is 26 h"]
    assert seen("backup", backup={"age_limit_h": 48}) == []


def test_repeats_alarms_of_the_watch_that_it_does_not_judge_itself() -> None:
    others = [
        "archive_mode is off until the server is restarted",
        "no restore test has ever passed",
        "the newest backup is dated 3.0 h in the future: a clock is or was wrong, so its age is unknown",
    ]
    judged = [
        "the newest backup is 30.0 h old, 26 h are allowed",
        "the last passed restore test is 60.0 h old, 50 h are allowed",
        "the last restore test failed: no space",
    ]
    watch(age_s=240, sets=[{"stop": time.time()}], alarms=[*judged, *others])
    # Without pgBackRest the alarms of the evidence are all that there is, so they are shown with their age.
    assert seen("backup") == [f"{alarm} (seen 4 min ago)" for alarm in others]


def test_a_host_without_backups_needs_no_watch() -> None:
    assert seen("backup", backup={"physical": False, "age_limit_h": 0}) == []


def test_reports_a_failed_and_an_overdue_restore_test() -> None:
    system.keep("drill", {"when": system.stamp(time.time()), "passed": False, "failure": "no space\nmore"})
    assert seen("drill") == ["the last restore test failed: no space"]
    system.keep("drill", {"when": system.stamp(time.time() - 60 * HOUR_S), "passed": True})
    assert seen("drill") == ["the last passed restore test is 60.0 h old; the limit is 50 h"]


def test_reports_a_failed_job_and_overdue_retention() -> None:
    late = system.stamp(time.time() - 60 * HOUR_S)
    jobs = {"sessions": {"outcome": "failed", "why": "deadlock"}, "retention": {"outcome": "done", "last_done": late}}
    system.keep("maintain", {"jobs": jobs})
    assert seen("maintenance") == ["sessions failed: deadlock", "retention last ran 60.0 h ago; the limit is 50 h"]


def test_reports_a_package_that_is_gone_since_the_verification() -> None:
    system.keep("verified", {"packages": {"provision-no-such-package": "1.0"}})
    (finding,) = found("packages")
    assert finding.seen == "package provision-no-such-package is gone; 1.0 was verified"


HOSTILE = "x; touch /tmp/owned #"


def test_names_in_evidence_cannot_become_a_command() -> None:
    """Attack: the group postgres writes the evidence, and an administrator pastes what the doctor prints as root."""
    system.keep("verified", {"packages": {HOSTILE: "1", "--admindir=/tmp": "1", "no-such-package": "1.0"}})
    system.keep("maintain", {"jobs": {HOSTILE: {"outcome": "failed"}, "index": {"outcome": "failed"}}})
    (package,) = found("packages")
    assert package.fix == "apt-get install -y no-such-package"
    (job,) = found("maintenance")
    assert job.fix == "systemctl start provision-maintain@index.service"


@pytest.mark.parametrize(
    ("name", "text", "check"),
    [
        ("verified", '{"packages": [1]}', "packages"),
        ("verified", '{"extensions": []}', "advisories"),
        ("backup", '{"when": "yesterday"}', "backup"),
        ("backup", '{"alarms": []}', "backup"),
        ("drill", '{"passed": true, "when": 5}', "drill"),
        ("maintain", '{"jobs": []}', "maintenance"),
    ],
)
def test_evidence_of_another_form_does_not_end_the_other_checks(host: Path, name: str, text: str, check: str) -> None:
    (host / f"{name}.json").write_text(text)
    assert "the check failed on damaged evidence" in " ".join(seen(check))


def test_evidence_without_an_end_is_no_evidence(host: Path) -> None:
    """Attack: a sparse file of a terabyte, and nested lists beyond the parser's depth."""
    with (host / "backup.json").open("wb") as stream:
        stream.truncate(2**40)
    (host / "drill.json").write_text("[" * 200_000)
    assert system.evidence("backup") == system.evidence("drill") == {}


def test_last_lines_of_a_failed_unit_are_shown_without_those_of_systemd() -> None:
    texts = ["pg_dump: error: connection lost", "error: the dump failed", "provision-backup@logical.service: Failed",
             "Failed to start provision-backup@logical.service", ""]  # fmt: skip
    shown = units._last("provision-backup@logical.service", texts)
    assert shown == "pg_dump: error: connection lost; error: the dump failed"
    assert len(units._last("x", ["y" * 500] * 9)) == 600
