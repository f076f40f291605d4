"""Schedules are judged by this machine's systemd-analyze, as a host's are, and refused before anything changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from provision.host import timers
from provision.plan import schedules
from provision.plan.context import Verdict
from tests.plans import built

NEVER = "which never elapses: expected a time in the future"
INVALID = 'expected a calendar expression (man systemd.time), such as "*-*-* 03:30" for every day at 03:30'
PHYSICAL = {"backup_allow_local_only": True}


def judged(name: str, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the refusals and the warnings of a prod host that name the variable."""
    found = built("prod", {name: text, **PHYSICAL})
    return (
        tuple(each for each in found.problems if each.startswith(name)),
        tuple(each for each in found.notices if each.startswith(name)),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("*-02-30 01:30", NEVER),
        ("2020-01-01", NEVER),
        ("0 3 * * *", "this is cron syntax; write '*-*-* 03:00'"),
        ("@daily", "this is cron syntax; write 'daily'"),
        ("every day", INVALID),
        ("25:00", INVALID),
        ("Mon..Foo", INVALID),
        (" ", INVALID),
        ("--help", INVALID),
        ("03:00 Nowhere/Atlantis", INVALID),
        ("03:00\nPersistent=false", "expected one line of printable characters"),
        ("%n", INVALID),
    ],
)
@pytest.mark.parametrize("name", ["backup_full_schedule", "maintenance_index_schedule"])
def test_refuses_a_schedule_that_would_never_start_a_job(name: str, text: str, said: str) -> None:
    ((problem,), _) = judged(name, text)
    assert problem.startswith(f"{name} is {text!r}")
    assert said in problem


def test_names_every_schedule_that_is_wrong_at_once() -> None:
    found = built("prod", {"backup_full_schedule": "x", "backup_drill_schedule": "*-02-30", **PHYSICAL})
    assert {each.partition(" ")[0] for each in found.problems} >= {"backup_full_schedule", "backup_drill_schedule"}


@pytest.mark.parametrize("text", ["", "daily", "weekly", "03:00 Europe/Berlin", "Mon..Fri *-*-* 01:30", "*-*~01 02:00"])
def test_accepts_schedules_that_elapse_again(text: str) -> None:
    assert judged("backup_full_schedule", text) == ((), ())


def test_warns_of_a_schedule_that_elapses_once() -> None:
    assert judged("backup_diff_schedule", "2150-01-01") == (
        (), ("backup_diff_schedule is '2150-01-01', which elapses only once",)
    )  # fmt: skip


def test_warns_of_full_backups_every_few_minutes() -> None:
    assert judged("backup_full_schedule", "*:0/5") == (
        (), ("backup_full_schedule is '*:0/5', which runs every 5 min; each run reads the whole cluster",)
    )  # fmt: skip
    assert judged("maintenance_sessions_schedule", "*:0/5") == ((), ())


def test_says_so_where_nothing_can_judge() -> None:
    verdict = Verdict()
    given = {"backup_full_schedule": "0 3 * * *", "backup_diff_schedule": ""}
    schedules.judge(given, {"schedules": None, "systemd": True}, verdict)
    assert verdict.refusals == []
    assert verdict.notices == [
        "schedules were not checked, because systemd-analyze is missing or too old here: backup_full_schedule; "
        "site.yml checks them on the host before any change"
    ]
    schedules.judge(given, {"schedules": None, "systemd": False}, quiet := Verdict())
    assert quiet == Verdict()


def test_a_systemd_analyze_that_is_too_old_judges_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "systemd-analyze"
    old.write_text("#!/bin/sh\necho \"systemd-analyze: unrecognized option '--iterations=2'\" >&2\nexit 1\n")  # 239
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert timers.elapses(["daily"]) is None


def test_a_machine_without_systemd_analyze_judges_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    assert timers.elapses(["daily"]) is None


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * *", "*-*-* 03:00"),
        ("*/15 * * * *", "*-*-* *:00/15"),
        ("0 0 1 * *", "*-*-01 00:00"),
        ("30 2 * * 1-5", "Mon,Tue,Wed,Thu,Fri *-*-* 02:30"),
        ("0 3 * * 0", "Sun *-*-* 03:00"),
        ("0 3 * * 5-7", "Fri,Sat,Sun *-*-* 03:00"),
        ("0 0,12 1 */2 *", "*-01/2-01 00,12:00"),
        ("10-20 4 * * *", "*-*-* 04:10..20"),
        ("@Weekly", "weekly"),
    ],
)
def test_translates_simple_lines_of_cron(cron: str, expected: str) -> None:
    assert schedules.from_cron(cron) == expected
    answers: Any = timers.elapses([expected])
    assert len(answers[expected]["at"]) == 2


@pytest.mark.parametrize(
    "text",
    ["0 3 1 * 1", "0 9-17/2 * * *", "99 3 * * *", "@reboot", "0 3 * *", "0 3 * * 1 root", "5-1 3 * * *", "daily"],
)
def test_leaves_other_lines_untranslated(text: str) -> None:
    assert schedules.from_cron(text) == ""


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("loaded", "active", "waiting"), ""),
        (("loaded", "active", "running"), ""),
        (("loaded", "inactive", "dead"), ""),
        (("loaded", "active", "elapsed"), "has no next elapse time"),
        (("bad-setting", "active", "waiting"), "cannot be loaded (bad-setting)"),
        (("not-found", "inactive", "dead"), "cannot be loaded (not-found)"),
    ],
)
def test_knows_a_timer_that_will_not_elapse(states: tuple[str, str, str], expected: str) -> None:
    assert timers.fault(*states) == expected
