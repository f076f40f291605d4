"""Pictures are what their tool draws, and the schema's picture shows the tables that the migrations create."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.contract.pictures import PICTURES, SCHEMA, tables
from tests.contract.repository import ROOT

NAMES = {"activities", "agent_tools", "agents", "evaluations", "feedback", "memories", "metrics", "sessions", "tools"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_picture_is_up_to_date(path: Path) -> None:
    assert path.read_text() == PICTURES[path](), "run: make docs"


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_picture_has_a_title_and_colours_for_light_and_dark_and_loads_nothing(path: Path) -> None:
    text = path.read_text()
    root = ElementTree.fromstring(text)  # noqa: S314 - our own file
    assert root.findtext(f"{SVG}title") == root.get("aria-label")
    assert "@media (prefers-color-scheme: dark)" in text
    assert re.findall(r"(?:href|src|url\()", text) == []


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_boxes_lie_within_the_picture_and_do_not_overlap(path: Path) -> None:
    root = ElementTree.fromstring(path.read_text())  # noqa: S314 - our own file
    boxes = []
    for each in root.iter(f"{SVG}rect"):
        if each.get("class") == "box":
            x, y, width, height = (int(each.get(name, "")) for name in ("x", "y", "width", "height"))
            boxes.append((x, y, x + width, y + height))
    assert boxes
    assert all(x >= 0 and y >= 0 for x, y, _, _ in boxes)
    assert all(right <= int(root.get("width", "")) and low <= int(root.get("height", "")) for _, _, right, low in boxes)
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1], (one, other)


def test_schema_shows_every_table_column_and_foreign_key() -> None:
    found = tables()
    assert set(found) == NAMES
    root = ElementTree.fromstring(SCHEMA.read_text())  # noqa: S314 - our own file
    texts = [each.text or "" for each in root.iter(f"{SVG}text")]
    for name, table in found.items():
        start = texts.index(name)
        shown = texts[start + 1 : start + 1 + 2 * len(table.columns)]
        assert shown[::2] == list(table.columns)
    assert len(root.findall(f"{SVG}polygon")) == 12
    assert "agents (cascade)" in texts
    assert "tools (restrict), key" in texts
    assert "vector(1536)" in texts


def test_screenshots_are_small_and_exist_in_light_and_dark() -> None:
    shots = {path.name: path.stat().st_size for path in Path(ROOT / "docs").glob("*.png")}
    assert {name.rpartition("-")[2] for name in shots} == {"light.png", "dark.png"}
    assert {name: size for name, size in shots.items() if size > 150_000} == {}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = [
        path.parent / name for path in pages for name in re.findall(r'(?:src|srcset)="([^":]+)"', path.read_text())
    ]
    assert shown
    assert [path for path in shown if not path.is_file()] == []
