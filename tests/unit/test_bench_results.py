"""Ratios, intervals and tables of the benchmark, with values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.controller.bench.comparison import write
from provision.controller.bench.harness import Configuration
from provision.controller.bench.intervals import Ratio, ratio
from provision.controller.bench.processes import cpu_seconds
from provision.controller.bench.results import Build, Results, Sample, combined, load, markdown, save, text
from provision.errors import UsageError


def sample(tps: float, cpu: float = 100.0) -> Sample:
    return Sample(tps=tps, p95=5.0, cpu_us=cpu, wal_bytes=1000.0)


def results(rounds: dict[str, list[float]]) -> Results:
    made = Results(
        "2026-11-28T23:00:00+00:00", "a machine", "15.14", "0.8.0", {"vectors": 400}, {"stock": "", "prod": "jit = off"}
    )
    made.rounds = {name: [{"TPC-B": sample(tps)} for tps in each] for name, each in rounds.items()}
    made.builds = {name: [Build(10.0, 9.0, 50.0, {"easy, ef 40": 0.97})] for name in rounds}
    return made


def test_a_ratio_is_the_geometric_mean_over_rounds_of_the_ratio_of_each_round() -> None:
    # 200/100 = 2 and 100/200 = 0.5: their geometric mean is 1, although the sums differ from round to round.
    assert ratio([200, 100], [100, 200]).value == pytest.approx(1.0)
    # The machine halves its speed in the second round: the ratio of both rounds is 3.
    steady = ratio([300, 150, 300], [100, 50, 100])
    assert (steady.value, steady.low, steady.high) == pytest.approx((3.0, 3.0, 3.0))


def test_an_interval_lies_between_the_extreme_rounds_and_holds_the_ratio() -> None:
    found = ratio([90, 100, 110, 130, 80], [100] * 5)
    assert 0.8 <= found.low < found.value < found.high <= 1.3
    assert not found.differs
    assert ratio([120, 130, 125, 118, 131], [100] * 5).differs
    assert found == ratio([90, 100, 110, 130, 80], [100] * 5)


def test_a_single_round_has_no_interval() -> None:
    found = ratio([110], [100])
    assert (found.low, found.high) == (0.0, float("inf"))
    assert not found.differs


@pytest.mark.parametrize(("values", "base"), [([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0])])
def test_refuses_unequal_rounds_and_values_that_have_no_ratio(values: list[float], base: list[float]) -> None:
    with pytest.raises(UsageError):
        ratio(values, base)


def test_a_ratio_is_printed_with_its_interval() -> None:
    assert Ratio(1.131, 1.084, 1.186).text == "1.13 [1.08 1.19]"


def test_an_unfinished_round_is_left_out_of_the_table() -> None:
    made = results({"stock": [100, 100], "prod": [150]})
    lines = text(made, "stock").splitlines()
    assert lines[0] == "transactions per second, ratio to stock"
    assert lines[3].split() == ["prod", "1.50"]
    assert lines[4].split() == ["(stock)", "100"]


def test_a_run_that_ended_before_the_base_was_measured_has_no_table() -> None:
    made = results({"stock": [], "prod": [150]})
    assert text(made, "stock").startswith("HNSW build, ratio to stock")


def test_the_table_of_builds_shows_seconds_and_recall() -> None:
    page = markdown(results({"stock": [100, 100], "prod": [150, 160]}), "stock")
    assert "| configuration | seconds | ratio | CPU, ratio | recall, easy, ef 40 |" in page
    assert "| prod | 10.0 | 1.00 | 1.00 | 0.970 |" in page


def test_runs_in_pieces_are_combined_only_if_their_conditions_are_equal(tmp_path: Path) -> None:
    save(results({"stock": [100], "prod": [150]}), tmp_path / "one.json")
    save(results({"stock": [120], "prod": [150]}), tmp_path / "two.json")
    one, two = load(tmp_path / "one.json"), load(tmp_path / "two.json")
    assert [each["TPC-B"].tps for each in combined([one, two]).rounds["stock"]] == [100, 120]
    other = load(tmp_path / "two.json")
    other.pgvector = "0.8.6"
    with pytest.raises(UsageError, match="cannot be combined"):
        combined([load(tmp_path / "one.json"), other])


def test_combined_runs_pair_only_rounds_of_one_run() -> None:
    # The first run ended before prod's second round, and the second run measured one more configuration: by position
    # alone, prod's 300 would be divided by the first run's 150, and tpa's 90 by 100.
    one, two = results({"stock": [100, 150], "prod": [200]}), results({"stock": [120], "prod": [300], "tpa": [90]})
    found = combined([one, two])
    assert {name: [each["TPC-B"].tps for each in rounds] for name, rounds in found.rounds.items()} == {
        "stock": [100, 120],
        "prod": [200, 300],
    }
    assert found.configurations.keys() == {"stock", "prod"}


def test_combined_runs_show_what_all_measured_and_name_the_rest() -> None:
    one, two = results({"stock": [100], "prod": [200]}), results({"stock": [100], "prod": [200]})
    two.rounds = {name: [{**each[0], "mixed": sample(1)}] for name, each in two.rounds.items()}
    two.configurations["tpa"] = "jit = on"
    found = combined([two, one])
    assert found.stages == ["TPC-B"]
    assert found.remarks == ["not in every run, so left out: tpa"]


def test_the_report_opens_without_a_network(tmp_path: Path) -> None:
    shown, numbers = write(results({"stock": [100, 100], "prod": [150, 140]}), "stock", tmp_path)
    page = shown.read_text()
    assert "<script src=" not in page
    assert "transactions per second, ratio to stock" in page
    assert "jit = off" in page
    assert load(numbers).rounds["prod"][0]["TPC-B"].tps == 150


def test_a_change_of_huge_pages_reserves_none() -> None:
    before = Configuration("huge_pages = try", 600)
    assert before.changed("jit = on") == Configuration("huge_pages = try\njit = on", 600)
    assert before.changed("huge_pages = off").pages == 0


def test_cpu_time_counts_the_postmaster_its_ended_and_its_running_children(tmp_path: Path) -> None:
    # pid (name) state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime ...
    rest = "1 1 0 -1 0 0 0 0 0"
    for pid, parent, times in (
        (10, 1, "100 50 200 50"),
        (11, 10, "30 20 0 0"),
        (12, 10, "5 5 0 0"),
        (13, 1, "900 0 0 0"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (postgres: a (b) c) S {parent} {rest} {times} 20 0\n")
    assert cpu_seconds(10, tmp_path) == pytest.approx(4.6)  # 460 ticks of 10 ms
