"""README's table of sizes is what the calculator gives, and grows with the host."""

from __future__ import annotations

from tests.contract.repository import ROOT, between
from tests.contract.sizes import BEGIN, END, SIZES, carried, rounded, table, with_table


def test_readme_has_the_table_that_the_calculator_makes() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == with_table(text), "run: make docs"


def test_table_has_seven_sizes_and_the_known_values_of_one() -> None:
    rows = [line.split(" | ") for line in table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"| {memory} GB" for memory, _ in SIZES]
    assert len(rows) == 7
    assert rows[2][1:4] == ["4", "2GB", "6GB"]


def test_page_about_sizing_has_the_table_that_the_calculator_makes() -> None:
    text = (ROOT / "docs/sizing.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == between(text, BEGIN, END, carried()), "run: make docs"
    row = carried().splitlines()[2].split(" | ")
    assert row[0] == "| 2 GB"
    assert row[2] == "81,000"  # 640 MB of pages of 8 kB, one for each vector: 81,920


def test_counts_are_rounded_down_to_two_digits() -> None:
    assert [rounded(count) for count in (65_536, 199_999, 7, 100)] == [65_000, 190_000, 7, 100]


def test_picture_and_clone_line_are_on_the_first_screen() -> None:
    screen = (ROOT / "README.md").read_text().splitlines()[:28]
    assert any("docs/architecture.svg" in line for line in screen)
    assert any(line.startswith("git clone ") for line in screen)
    assert any("macOS and Windows" in line for line in screen)
