"""Statements are ranked by what they used, and two readings are compared; expected values are written by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from provision import system
from provision.errors import UsageError
from provision.host.metrics import statements as metrics
from provision.host.metrics.exposition import render
from provision.host.queries import snapshots
from provision.host.queries.ranking import dominant, ranked, summary
from provision.host.queries.statements import Counters, Reading, Statement, described

SEARCH = Statement(
    "1", "minion_app", "minion", "SELECT content FROM memories", Counters(100, 6000, 1000, 50, 5, 0, 0, 0)
)
REPORT = Statement(
    "2", "minion", "minion", "SELECT\n  count(*) FROM activities", Counters(2, 3000, 2, 10, 900, 0, 70, 0)
)
INSERT = Statement(
    "3", "minion_app", "minion", "INSERT INTO metrics VALUES ($1)", Counters(500, 1000, 500, 9, 0, 20, 0, 4096)
)
IDLE = Statement("4", "minion", "minion", "SELECT 1", Counters())
READING = Reading(10_000.0, 1_000.0, (IDLE, INSERT, REPORT, SEARCH), 0, 5000)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("total", [("1", 0.6), ("2", 0.3), ("3", 0.1)]),
        ("mean", [("2", 0.3), ("1", 0.6), ("3", 0.1)]),
        ("calls", [("3", 500 / 602), ("1", 100 / 602), ("2", 2 / 602)]),
        ("io", [("2", 900 / 925), ("3", 20 / 925), ("1", 5 / 925)]),
        ("temp", [("2", 1.0)]),
        ("wal", [("3", 1.0)]),
    ],
)
def test_ranks_by_each_measure_with_the_share_of_the_load(by: str, expected: list[tuple[str, float]]) -> None:
    found = ranked(READING.statements, by, 10)
    assert [each.statement.query_id for each in found] == [query_id for query_id, _ in expected]
    assert [each.share for each in found] == pytest.approx([share for _, share in expected])
    assert len(ranked(READING.statements, by, 1)) == 1


def test_the_fewest_statements_that_make_up_a_share() -> None:
    assert [each.statement.query_id for each in dominant(READING.statements, 0.5)] == ["1"]
    assert [each.statement.query_id for each in dominant(READING.statements, 0.9)] == ["1", "2"]
    assert dominant((IDLE,), 0.9) == []


def test_summary_names_the_statements_that_make_up_most_of_the_load() -> None:
    assert summary(READING) == (
        "2 statements are 90% of the execution time since 1970-01-01T00:16:40+00:00 (provision queries):",
        "  60%, 100 calls of 60 ms by minion_app: SELECT content FROM memories",
        "  30%, 2 calls of 1,500 ms by minion: SELECT count(*) FROM activities",
    )
    assert summary(replace(READING, statements=(IDLE,))) == ()


def test_counters_are_described_in_units_that_people_read() -> None:
    assert described(Counters(4, 10, 8, 128, 256, 512, 1024, 3 * 2**20)) == {
        "calls": 4, "total_ms": 10, "mean_ms": 2.5, "rows": 8, "hit_mb": 1, "read_mb": 2, "written_mb": 4, "temp_mb": 8,
        "wal_mb": 3,
    }  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    return tmp_path / "queries"


def test_a_snapshot_is_kept_every_ten_minutes_for_a_week_without_texts(place: Path) -> None:
    assert snapshots.keep(READING)
    assert not snapshots.keep(replace(READING, at=10_300.0))
    assert snapshots.keep(replace(READING, at=10_590.0))
    assert sorted(path.name for path in place.iterdir()) == ["10000.json", "10590.json"]
    assert "SELECT" not in (place / "10000.json").read_text()
    assert snapshots.keep(replace(READING, at=10_000.0 + 7 * 86400 + 1))
    assert sorted(path.name for path in place.iterdir()) == ["10590.json", "614801.json"]


def test_snapshot_before_a_moment_is_the_nearest_earlier_one(place: Path) -> None:
    assert snapshots.before(10_000) is None
    for at in (10_000.0, 11_000.0, 12_000.0):
        assert snapshots.keep(replace(READING, at=at))
    assert place.exists()
    found = [snapshots.before(moment) for moment in (11_999, 11_500, 9_000, 99_999)]
    assert [each.at for each in found if each] == [12_000, 11_000, 10_000, 12_000]


def test_difference_counts_what_was_used_since_and_new_statements_from_zero(place: Path) -> None:
    snapshots.keep(replace(READING, statements=(SEARCH, INSERT)))
    assert place.exists()
    earlier = snapshots.before(10_000)
    assert earlier
    later = replace(SEARCH, counters=Counters(150, 9000, 1500, 60, 5, 0, 0, 0))
    again = replace(INSERT, counters=Counters(3, 5, 3, 0, 0, 0, 0, 100))  # evicted, and counted from zero since
    found = snapshots.difference(replace(READING, at=20_000.0, statements=(later, again, REPORT)), earlier)
    assert (found.since, found.unknown) == (10_000, 0)
    assert {each.query_id: each.counters.calls for each in found.statements} == {"1": 50, "3": 3, "2": 2}
    assert found.statements[0].counters == Counters(50, 3000, 500, 10, 0, 0, 0, 0)


def test_statement_that_an_incomplete_snapshot_lacks_is_left_out_and_counted(place: Path) -> None:
    snapshots.keep(replace(READING, statements=(SEARCH,)))
    path = place / "10000.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False}))
    earlier = snapshots.before(10_000)
    assert earlier
    found = snapshots.difference(replace(READING, at=20_000.0), earlier)
    assert found.unknown == 3
    assert [each.query_id for each in found.statements] == ["1"]


def test_after_a_reset_everything_since_then_is_the_difference(place: Path) -> None:
    snapshots.keep(READING)
    assert place.exists()
    earlier = snapshots.before(10_000)
    assert earlier
    found = snapshots.difference(replace(READING, at=20_000.0, reset=15_000.0), earlier)
    assert (found.since, len(found.statements)) == (15_000, 4)


@pytest.mark.parametrize(("text", "expected"), [("30m", 1800), ("1h", 3600), ("2d", 172_800)])
def test_reads_an_age(text: str, expected: int) -> None:
    assert snapshots.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0h", "1", "1w", "-1h", "1.5h"])
def test_refuses_what_is_no_age(text: str) -> None:
    with pytest.raises(UsageError, match="--since is not a time"):
        snapshots.seconds(text)


def test_series_are_bounded_and_the_rest_is_one_sum() -> None:
    many = tuple(replace(SEARCH, query_id=str(number), counters=Counters(1, 1000 + number)) for number in range(300))
    found = {each.name: each for each in metrics.metrics(replace(READING, statements=many))}
    samples = found["provision_statement_calls_total"].samples
    assert len(samples) == 21
    assert samples[0][0] == {
        "query_id": "299", "role": "minion_app", "database": "minion", "statement": "SELECT content FROM memories",
    }  # fmt: skip
    assert samples[-1] == ({"query_id": "others", "role": "", "database": "", "statement": "all others"}, 280)
    assert found["provision_statements_tracked"].samples == (({}, 300),)
    assert render(found.values()).count("\n") < 80


def test_text_of_a_label_is_one_line_of_eighty_characters() -> None:
    assert metrics.short("SELECT\n  1") == "SELECT 1"
    assert metrics.short("x" * 90) == "x" * 77 + "..."
