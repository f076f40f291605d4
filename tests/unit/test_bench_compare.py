"""`provision bench --compare`: ratios to an earlier report of the same conditions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from provision.controller.bench.compare import compare, earlier, lines
from provision.controller.bench.pgbench import Rate
from provision.controller.bench.report import write
from provision.controller.bench.run import Measured, Sizes, machine_text, middle
from provision.errors import UsageError


def measured(*rates: float) -> Measured:
    rounds = [{"read-only": Rate(tps, 1.0, 1000 / tps, 3.0, 100)} for tps in rates]
    found = Measured("now", machine_text(), "db", "17.5", "0.8.6", {}, Sizes(rounds=len(rates)), rounds=rounds)
    return dataclasses.replace(found, rates={"read-only": middle([each["read-only"] for each in rounds])})


def saved(path: Path, found: Measured) -> Path:
    path.write_text(json.dumps(found.as_json()))
    return path


def test_the_rate_of_several_rounds_is_their_median() -> None:
    rate = middle([Rate(100, 1, 5, 9, 10), Rate(300, 2, 6, 8, 30), Rate(200, 3, 4, 7, 20)])
    assert rate == Rate(200, 2, 5, 8, 60)


def test_ratios_to_an_earlier_report_have_intervals(tmp_path: Path) -> None:
    before = earlier(saved(tmp_path / "bench.json", measured(100, 100)), Sizes(rounds=2))
    found = compare(measured(150, 150), before)
    assert lines(found) == [
        "compared with before                rate                 p95",
        "read-only               1.50 [1.50 1.50]    0.67 [0.67 0.67]",
    ]


def test_report_holds_the_ratios(tmp_path: Path) -> None:
    name = "search, ef 40"
    rounds = [{name: Rate(150, 1.0, 2.0, 3.0, 100)}]
    found = dataclasses.replace(measured(150), rounds=rounds, rates=rounds[0], recall={40: 0.9})
    before = dataclasses.replace(found, rounds=[{name: Rate(100, 1.0, 4.0, 3.0, 100)}])
    found.compared = compare(found, earlier(saved(tmp_path / "bench.json", before), Sizes()))
    page, numbers = write(found, tmp_path / "after")
    assert "<tr><th>search, ef 40<td>1.50<td>0.50</tr>" in page.read_text()
    assert json.loads(numbers.read_text())["compared"][name]["p95"]["value"] == pytest.approx(0.5)


def test_one_round_has_a_ratio_without_an_interval(tmp_path: Path) -> None:
    found = compare(measured(150), earlier(saved(tmp_path / "bench.json", measured(100)), Sizes()))
    assert lines(found)[1].split() == ["read-only", "1.50", "0.67"]


def test_refuses_other_conditions_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="different conditions") as refused:
        earlier(saved(tmp_path / "bench.json", measured(100, 100)), Sizes())
    assert (refused.value.seen, refused.value.allowed) == ("rounds 1", "rounds 2, as in the earlier one")
    machine = {"client": "another machine", "sizes": dataclasses.asdict(Sizes()), "rounds": []}
    (tmp_path / "bench.json").write_text(json.dumps(machine))
    with pytest.raises(UsageError, match="different conditions"):
        earlier(tmp_path / "bench.json", Sizes())
    (tmp_path / "bench.json").write_text("[]")
    with pytest.raises(UsageError, match="not a report of provision bench"):
        earlier(tmp_path / "bench.json", Sizes())
