"""The repository's disk: the alarm comes long before it is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.host.backup import tool
from provision.host.backup.counts import uncounted
from provision.host.backup.status import damage, filling, old

DAY = 86400
MB, GB = 2**20, 2**30


@pytest.mark.parametrize(
    ("grown_by", "days", "free", "expected_days", "alarm"),
    [
        (10 * GB, 10, 100 * GB, 100.0, ""),
        (10 * GB, 10, 6 * GB, 6.0, "the repository will be full in 6.0 days at its present growth"),
        (10 * GB, 10, 7 * GB, 7.0, ""),
        (10 * GB, 10, 4 * GB, 4.0, "the repository has 4.0 GB free and a full backup takes 5.0 GB"),
        (0, 10, 6 * GB, None, ""),
        (-2 * GB, 10, 6 * GB, None, ""),
        # Half an hour tells nothing of a week.
        (1 * GB, 1 / 48, 6 * GB, None, ""),
    ],
)
def test_alarm_names_the_days_or_the_backup_that_would_not_fit(
    grown_by: int, days: float, free: int, expected_days: float | None, alarm: str
) -> None:
    past = [(1000.0, 50 * GB), (1000.0 + days * DAY / 2, 50 * GB + grown_by // 2)]
    found, alarms = filling(
        {"bytes": 50 * GB + grown_by, "free_bytes": free}, [5 * GB, 3 * GB], past, 1000 + days * DAY
    )
    assert found == expected_days
    assert len(alarms) == (alarm != "")
    assert alarm in "".join(alarms)
    assert all(text.endswith("docs/the-repository-is-full.md") for text in alarms)


def test_empty_repository_alarms_of_nothing() -> None:
    assert filling({"bytes": 0, "free_bytes": 1 * MB}, [], [], 5000) == (None, [])


@pytest.mark.parametrize(
    ("age", "limit", "alarm"),
    [
        (25.0, 26, ""),
        (26.5, 26, "the newest backup is 26.5 h old, 26 h are allowed"),
        (9999.0, 0, ""),
        (-0.05, 26, ""),
        # A clock that was a year ahead would keep the alarm silent for a year.
        (-8760.0, 26, "the newest backup is dated 8760.0 h in the future"),
        (-8760.0, 0, "the newest backup is dated 8760.0 h in the future"),
    ],
)
def test_alarm_on_age_cannot_be_silenced_by_a_clock_that_was_ahead(age: float, limit: int, alarm: str) -> None:
    found = old("the newest backup", age, limit)
    assert len(found) == (alarm != "")
    assert alarm in "".join(found)


# As pgBackRest 2.55.1 writes it: one of its counts says zero of another kind of damage on the very same line.
SOUND = [
    "stanza: prod1",
    "status: ok",
    "archiveId: 17-1, total WAL checked: 9, total valid WAL: 9",
    "missing: 0, checksum invalid: 0, size invalid: 0, other: 0",
    "backup: 20261124-130000F, status: valid, total files checked: 20, total valid files: 20",
    "missing: 0, checksum invalid: 0, size invalid: 0, other: 0",
]


@pytest.mark.parametrize(
    ("line", "becomes", "expected"),
    [
        (0, "stanza: prod1", []),
        (1, "status: error", ["status: error"]),
        (3, "missing: 1, checksum invalid: 0, size invalid: 0, other: 0", ["archiveId: 17-1, missing: 1"]),
        (3, "missing: 0, checksum invalid: 1, size invalid: 0, other: 0", ["archiveId: 17-1, checksum invalid: 1"]),
        (
            5,
            "missing: 0, checksum invalid: 0, size invalid: 10, other: 2",
            ["backup: 20261124-130000F, size invalid: 10, other: 2"],
        ),
        (
            4,
            "backup: 20261124-130000F, status: manifest missing/corrupt, total files checked: 0, total valid files: 0",
            ["backup: 20261124-130000F is manifest missing/corrupt"],
        ),
        # Stopped half-way, which is no damage.
        (4, "backup: 20261124-130000F, status: in-progress, total files checked: 0, total valid files: 0", []),
    ],
)
def test_verify_names_each_kind_of_damage_and_where_it_is(line: int, becomes: str, expected: list[str]) -> None:
    reported = [*SOUND[:line], becomes, *SOUND[line + 1 :]]
    assert damage(reported) == expected
    reported[1] = "status: error" if expected else "status: ok"
    assert damage(reported) == expected


WRITE = "repo1: [FileWriteError] raised from remote-1 ssh protocol on '10.0.0.9': unable to write '/repository/{}.tmp'"


def test_failure_that_most_waiting_segments_met_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "SPOOL", tmp_path)
    folder = tmp_path / "db1/out"
    assert tool.not_archived("db1") == ""
    folder.mkdir(parents=True)
    head = "104\nraised from local-1 protocol: archive-push command encountered error(s):\n"
    retry = "\n    [CommandError] on retry at 176ms: archive-push command encountered error(s):\n"
    first = WRITE.format("15")
    (folder / "000000010000000000000015.error").write_text(f"{head}{first}{retry}{first}: [2] No such file")
    for name in ("16", "17"):
        line = f"{WRITE.format(name)}: [28] No space left on device"
        (folder / f"0000000100000000000000{name}.error").write_text(head + line + retry + line)
    (folder / "000000010000000000000014.ok").write_text("")
    assert tool.not_archived("db1") == (
        "[FileWriteError] raised from remote-1 ssh protocol on '10.0.0.9': unable to write: "
        "[28] No space left on device"
    )
    for path in folder.glob("*.error"):
        path.unlink()
    gone = "[UnknownError] remote-0 process on '10.0.0.9' terminated unexpectedly [255]: Permission denied (publickey)."
    (folder / "global.error").write_text(f"103\nunable to find a valid repository:\nrepo1: {gone}")
    assert tool.not_archived("db1") == gone
    # With two repositories, the message names each that fails.
    (folder / "global.error").write_text(f"103\nerrors:\nrepo1: {gone}\nrepo2: [HostConnectError] refused")
    assert tool.not_archived("db1", several=True) == f"repository 1: {gone}; repository 2: [HostConnectError] refused"


SETS = [{"label": "A", "stop": 1000.0}, {"label": "B", "stop": 1000.0 + 4 * 3600}]


@pytest.mark.parametrize(
    ("known", "hours", "limit", "alarm"),
    [
        ({"A", "B"}, 40, 26, ""),
        ({"B"}, 40, 26, ""),
        ({"A"}, 26, 26, ""),
        ({"A"}, 27, 26, "backups have had no reference counts for 27.0 h, 26 h are allowed: a transaction stays open"),
        (set(), 27, 26, "backups have had no reference counts for 27.0 h"),
        (set(), 25, 26, ""),
        ({"A"}, 400, 0, ""),
    ],
)
def test_missing_reference_counts_raise_an_alarm_in_time(known: set[str], hours: int, limit: int, alarm: str) -> None:
    found = uncounted(SETS, known, 1000.0 + hours * 3600, limit)
    assert len(found) == (alarm != "")
    assert "".join(found).startswith(alarm)
    assert uncounted([], known, 1000.0, limit) == []
