"""Recovery targets: what is read, what is refused, and which set is chosen for each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provision.errors import UsageError
from provision.host.backup import targets, wal
from provision.host.backup.request import Request
from provision.host.backup.targets import Window, choose, parse
from provision.host.backup.tool import Archive, Set

FULL = Set("20261101-013000F", "full", 1000, 1100, "0/3000028", "0/3000120", "000000010000000000000003",
           "000000010000000000000003", 1, 1, "", False, 1)  # fmt: skip
LATER = replace(FULL, label="20261102-013000F", start=2000, stop=2100, lsn_start="0/5000028", lsn_stop="0/5000120",
                wal_start="000000010000000000000005", wal_stop="000000010000000000000005")  # fmt: skip
NAMES = [f"00000001000000000000000{number}" for number in range(3, 8)]
TIMES = {name: 1100 + 500 * index for index, name in enumerate(NAMES)}


def windows(*missing: str) -> list[Window]:
    archive = Archive(tuple(wal.archived(name for name in NAMES if name not in missing)), {})
    found = (targets.window(each, archive, TIMES) for each in (FULL, LATER))
    return [each for each in found if each is not None]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("time:2026-11-23 14:05:00+01:00", "2026-11-23 13:05:00.000000+00"),
        ("time:2026-11-23T14:05Z", "2026-11-23 14:05:00.000000+00"),
        ("time:2026-07-01 14:05 Europe/Berlin", "2026-07-01 12:05:00.000000+00"),
        ("time:2026-11-23 14:05:00.25 +05:30", "2026-11-23 08:35:00.250000+00"),
        ("time:2026-11-23 14:05 -0330", "2026-11-23 17:35:00.000000+00"),
        ("time:2026-11-23 14:05 Asia/Kathmandu", "2026-11-23 08:20:00.000000+00"),
        ("time:2026-11-23 14:05 UTC", "2026-11-23 14:05:00.000000+00"),
        ("time:2026-11-23 14:05 Etc/GMT+1", "2026-11-23 15:05:00.000000+00"),
        ("time:2026-10-25 01:59 Europe/Berlin", "2026-10-24 23:59:00.000000+00"),
        ("lsn:0/03000060", "0/3000060"),
        ("xid:742", "742"),
        ("name:before v2", "before v2"),
    ],
)
def test_reads_a_target(text: str, value: str) -> None:
    assert parse(text).value == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time:2026-11-23 14:05:00", "no time zone"),
        ("time:yesterday", "not a valid time"),
        ("time:2026-11-23 14:05 Europe/Nowhere", "not a valid time"),
        ("time:2026-11-23 14:05 Europe", "not a valid time"),
        ("time:2026-11-23 14:05 /etc/passwd", "not a valid time"),
        ("time:2026-11-23 14:05+01:00 Europe/Berlin", "two time zones"),
        # Clocks went back, and showed this twice; went forward, and never did.
        ("time:2026-10-25 02:30 Europe/Berlin", "the time is ambiguous or does not exist"),
        ("time:2026-03-29 02:30 Europe/Berlin", "the time is ambiguous or does not exist"),
        ("time:", "not a recovery target"),
        ("tomorrow", "not a recovery target"),
        ("latest:1", "not a recovery target"),
        ("xid:abc", "not a transaction id"),
        ("name:it's", "not the name of a restore point"),
        ("lsn:12", "not a WAL position"),
    ],
)
def test_refuses_what_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_recovery_pauses_at_every_target_but_the_end() -> None:
    assert parse("latest").options == {}
    assert parse("immediate").options == {"recovery_target": "immediate", "recovery_target_action": "pause"}
    assert parse("name:x").options == {"recovery_target_name": "x", "recovery_target_action": "pause"}


def at(seconds: int) -> targets.Target:
    return targets.Target("time", "", float(seconds))


def test_a_set_with_damaged_pages_is_chosen_only_by_its_name() -> None:
    one, other = windows()
    torn = replace(other, set=replace(other.set, damaged=True))
    assert choose(parse("latest"), [one, torn], 9999).set is FULL
    assert choose(parse("latest"), [one, torn], 9999, LATER.label) is torn
    with pytest.raises(UsageError, match="only sets with damaged pages reach this target"):
        choose(parse("latest"), [torn], 9999)


def test_newest_set_that_ended_before_the_moment_is_chosen() -> None:
    assert choose(at(1500), windows(), 9999).set is FULL
    assert choose(at(2100), windows(), 9999).set is LATER
    assert choose(parse("latest"), windows(), 9999).set is LATER
    assert choose(parse("lsn:0/4000000"), windows(), 9999).set is FULL
    assert choose(parse("name:x"), windows(), 9999).set is FULL


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (at(1099), "cannot be reached"),
        (at(10000), "in the future"),
        (parse("lsn:0/3000000"), "cannot be reached"),
        (parse("lsn:0/9000000"), "cannot be reached"),
    ],
)
def test_refuses_what_is_outside_the_window_and_tells_it(target: targets.Target, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        choose(target, windows(), 9999)
    assert "from 1970-01-01 00:18:20+00 (set 20261101-013000F, 0/3000120)" in refused.value.allowed


def test_refuses_the_end_of_an_archive_with_a_gap_and_names_it() -> None:
    broken = windows("000000010000000000000006")
    assert [each.gap.name for each in broken if each.gap] == ["000000010000000000000006"] * 2
    with pytest.raises(UsageError) as refused:
        choose(parse("latest"), broken, 9999)
    assert "000000010000000000000006 is missing" in refused.value.allowed
    assert choose(at(2100), broken, 9999).set is LATER
    with pytest.raises(UsageError, match="cannot be reached"):
        choose(at(2700), broken, 9999)


def test_set_whose_own_wal_is_missing_has_no_window() -> None:
    assert [each.set.label for each in windows("000000010000000000000005")] == [FULL.label]
    with pytest.raises(UsageError, match="no such set"):
        choose(parse("latest"), windows(), 9999, "20990101-000000F")


def left(*names: str) -> list[Window]:
    """Windows of a set before, and of one behind, the moment to which a restore went back: 0/4000150."""
    archive = Archive(tuple(wal.archived([*NAMES, *names])), {2: (1, wal.position("0/4000150"))})
    found = (targets.window(each, archive, TIMES) for each in (FULL, LATER))
    return [each for each in found if each is not None]


def test_set_that_a_restore_has_left_is_chosen_for_nothing_that_came_after() -> None:
    newer = ("000000020000000000000004", "000000020000000000000005")
    assert [(each.set.label, each.timeline, each.newest) for each in left(*newer)] == [
        (FULL.label, 2, True),
        (LATER.label, 1, False),
    ]
    assert choose(at(2500), left(*newer), 9999).set is FULL
    assert choose(parse("latest"), left(*newer), 9999).set is FULL
    assert "on timeline 1, which a restore abandoned" in str(left(*newer)[1])
    # By its name, it brings back what the restore has left.
    assert choose(parse("latest"), left(*newer), 9999, LATER.label).timeline == 1
    assert [each.options for each in left(*newer)] == [[], ["--target-timeline=current"]]


def test_old_timeline_is_reached_by_its_number() -> None:
    archive = Archive(tuple(wal.archived(NAMES)), {2: (1, wal.position("0/4000150"))})
    found = [window for each in (FULL, LATER) if (window := targets.window(each, archive, TIMES, 1))]
    assert [each.reached.name for each in found] == ["000000010000000000000007"] * 2
    assert choose(parse("latest"), found, 9999, timeline=1).set is LATER


def test_the_command_that_starts_a_restore_has_its_options_and_confirmations() -> None:
    request = Request(target="time:2026-11-23 14:05 Europe/Berlin", delta=True, timeline=2)
    assert request.confirming("db1") == (
        "provision restore run --target 'time:2026-11-23 14:05 Europe/Berlin' --timeline 2 --delta --confirm db1"
        " --confirm-delta overwrite"
    )
    assert Request().confirming("db1") == "provision restore run --confirm db1"
