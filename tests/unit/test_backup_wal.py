"""WAL segments: names, order, gaps, and the way through timelines. Values by hand, from PostgreSQL's own naming."""

from __future__ import annotations

import pytest

from provision.errors import UsageError
from provision.host.backup import requeue, wal


def segments(*names: str) -> list[wal.Segment]:
    return [wal.Segment.parse(name) for name in names]


ONE = "000000010000000000000003"


def test_names_round_trip_over_the_end_of_a_log_file() -> None:
    last = wal.Segment.parse("0000000100000000000000FF")
    assert wal.Segment(1, last.number + 1).name == "000000010000000100000000"
    assert last.end == 0x1_0000_0000


def test_position_is_the_two_halves() -> None:
    assert wal.position("1/3000060") == 0x1_0300_0060
    assert wal.text(0x1_0300_0060) == "1/3000060"


@pytest.mark.parametrize("text", ["", "3000060", "0/", "0/xyz", "0/123456789"])
def test_refuses_what_is_no_position(text: str) -> None:
    with pytest.raises(UsageError, match="not a WAL position"):
        wal.position(text)


def test_archive_s_other_files_are_no_segments() -> None:
    names = [
        "00000002.history",
        f"{ONE}-0123456789abcdef.zst",
        f"{ONE}.00000028.backup",
        "000000010000000000000004.partial",
        f"000000010000000000000005-{'b' * 40}.zst.pgbackrest.tmp",
    ]
    assert wal.archived(names) == segments(ONE)


def test_reach_ends_before_the_first_missing_segment_and_names_it() -> None:
    have = segments(ONE, "000000010000000000000004", "000000010000000000000006")
    assert wal.reach(have, have[0], {}, [1]) == (have[1], wal.Segment.parse("000000010000000000000005"))
    assert wal.reach(have, wal.Segment.parse("000000010000000000000005"), {}, [1])[0] is None
    assert wal.reach(have[:2], have[0], {}, [1]) == (have[1], None)


def test_reach_follows_a_way_through_timelines_from_where_each_left() -> None:
    have = segments(ONE, "000000010000000000000004", "000000010000000000000005", "000000020000000000000004")
    history = {2: (1, wal.position("0/4000150"))}
    assert wal.reach(have, have[0], history, [1, 2]) == (wal.Segment.parse("000000020000000000000004"), None)
    assert wal.reach(have, have[0], history, [1]) == (wal.Segment.parse("000000010000000000000005"), None)


def test_segments_of_a_timeline_that_was_left_are_no_gap_of_the_new_one_which_has_archived_nothing_yet() -> None:
    have = segments(ONE, "000000010000000000000004", "000000010000000000000005")
    assert wal.reach(have, have[0], {2: (1, wal.position("0/4000150"))}, [1, 2]) == (have[0], None)


def test_way_to_a_timeline_leads_through_its_parents() -> None:
    history = {2: (1, 0x400), 3: (2, 0x800), 4: (1, 0x600)}
    assert wal.lineage(1, 0x100, history, 3) == [1, 2, 3]
    assert wal.lineage(1, 0x100, history, 4) == [1, 4]
    assert wal.lineage(2, 0x500, history, 4) == []
    assert wal.lineage(1, 0x100, history, 1) == [1]


def test_there_is_no_way_to_a_timeline_that_left_before_the_backup() -> None:
    history = {2: (1, 0x400), 3: (2, 0x800)}
    assert wal.lineage(1, 0x500, history, 2) == []
    assert wal.lineage(1, 0x500, history, 3) == []
    assert wal.lineage(2, 0x900, history, 3) == []
    assert wal.lineage(2, 0x800, history, 3) == [2, 3]


def test_history_file_tells_parent_and_position() -> None:
    text = "1\t0/5000000\tno recovery target specified\n\n2\t0/A0002C0\tbefore 2026-11-24 02:58:13+00\n"
    assert wal.parse_history(text) == (2, 0xA0002C0)
    assert wal.parse_history("") is None


HISTORY = {2: (1, wal.position("0/6000150")), 3: (2, wal.position("0/9000028"))}


def test_segments_that_a_lost_primary_did_not_archive_are_missing() -> None:
    archived = segments("000000010000000000000003", "000000010000000000000004", "000000020000000000000006")
    done = segments(
        "000000010000000000000004", "000000010000000000000005", "000000010000000000000006", "000000020000000000000006"
    )
    assert requeue.missing(done, archived, {2: HISTORY[2]}, 2) == segments("000000010000000000000005")
    assert requeue.missing(done, segments(*(each.name for each in done)), {2: HISTORY[2]}, 2) == []


def test_segments_that_retention_removed_are_not_missing() -> None:
    done = segments("000000010000000000000001", "000000010000000000000002")
    assert requeue.missing(done, segments("000000010000000000000004"), {2: HISTORY[2]}, 2) == []
    assert requeue.missing(done, segments("000000020000000000000006"), {2: HISTORY[2]}, 2) == []


def test_missing_segments_of_two_lost_primaries_are_found() -> None:
    archived = segments("000000010000000000000004")
    done = segments("000000010000000000000005", "000000020000000000000006", "000000020000000000000008",
                    "000000020000000000000009", "000000030000000000000009")  # fmt: skip
    expected = segments("000000010000000000000005", "000000020000000000000006", "000000020000000000000008")
    assert requeue.missing(done, archived, HISTORY, 3) == expected


def test_segments_of_a_line_that_was_left_are_not_archived() -> None:
    done = segments("000000020000000000000007", "000000020000000000000008")
    assert requeue.missing(done, segments("000000010000000000000004"), {3: (1, wal.position("0/6000150"))}, 3) == []
