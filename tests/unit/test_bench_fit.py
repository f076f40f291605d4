"""Exponents of growth, with points whose power law is known."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.fit import Series, fit, plot, table
from provision.errors import UsageError

LINEAR = Series("migrate up", "migrations", "s", ((10, 0.5), (100, 5.0), (1000, 50.0)))
SQUARE = Series("HNSW build", "vectors", "s", ((10, 2.0), (100, 200.0)))


def test_the_exponent_of_a_power_law_is_found() -> None:
    assert fit(LINEAR.points) == pytest.approx((1.0, 0.05))
    assert SQUARE.exponent == pytest.approx(2.0)
    assert fit([(10, 3.0), (1000, 3.0)])[0] == pytest.approx(0.0)


def test_the_last_step_is_free_of_a_fixed_cost() -> None:
    found = Series("migrate status", "migrations", "s", ((10, 5.0), (1000, 2.0), (100, 1.0)))
    assert found.last == pytest.approx(0.30103)  # twice the cost at ten times the size


@pytest.mark.parametrize("points", [[(10, 1.0)], [(10, 1.0), (10, 2.0)], [(10, 1.0), (20, 0.0)]])
def test_refuses_points_without_a_fit(points: list[tuple[float, float]]) -> None:
    with pytest.raises(UsageError, match="positive costs at two sizes"):
        fit(points)


def test_each_kind_of_size_has_a_table() -> None:
    lines = table([LINEAR, SQUARE]).splitlines()
    assert lines[0] == "| migrations | 10 | 100 | 1,000 | exponent | last step |"
    assert lines[2] == "| migrate up, s | 0.5 | 5 | 50 | 1.00 | 1.00 |"
    assert lines[6] == "| HNSW build, s | 2 | 200 | 2.00 | 2.00 |"


def test_the_plot_has_a_panel_for_each_series_and_stays_inside_it() -> None:
    root = ET.fromstring(plot([LINEAR, SQUARE]))  # noqa: S314 - made above
    name = "{http://www.w3.org/2000/svg}"
    titles = [text.text for text in root.iter(f"{name}text") if text.get("class") == "title"]
    assert titles == ["migrate up, s: 1.00", "HNSW build, s: 2.00"]
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in root.iter(f"{name}circle")]
    assert len(dots) == 5
    assert all(0 < x < 280 and 0 < y < 190 for x, y in dots)
    assert dots[0][0] < dots[1][0] < dots[2][0]
    assert dots[0][1] > dots[1][1] > dots[2][1]  # SVG counts downwards
