"""The repository's disk: the alarm comes long before it is full."""

from __future__ import annotations

import pytest

from provision.backup.status import damage, filling, old

DAY = 86400
MB, GB = 2**20, 2**30


@pytest.mark.parametrize(
    ("grown_by", "days", "free", "expected_days", "alarm"),
    [
        (10 * GB, 10, 100 * GB, 100.0, ""),
        (10 * GB, 10, 6 * GB, 6.0, "the repository is full in 6.0 days, as it has grown so far"),
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
        (26.5, 26, "the newest backup is 26.5 h old, 26 are allowed"),
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
    ],
)
def test_verify_names_each_kind_of_damage_and_where_it_is(line: int, becomes: str, expected: list[str]) -> None:
    told = [*SOUND[:line], becomes, *SOUND[line + 1 :]]
    assert damage(told) == expected
    told[1] = "status: error" if expected else "status: ok"
    assert damage(told) == expected
