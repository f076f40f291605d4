"""Rules, dashboard and pages agree: each alert has its page and its case, and what is recorded is what is read."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.contract.repository import ROOT
from tests.expressions import DASHBOARD, names, queries, rules

ALERTS = rules("alert")
CASES = [
    case
    for path in sorted((ROOT / "tests/integration/alerts").glob("*.test.yml"))
    for case in yaml.safe_load(path.read_text())["tests"]
]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up", {"up"}),
        ('rate(a_total{b="c d"}[5m]) > 3 * 10', {"a_total"}),
        ("sum by (host, user) (a:b) / on (host) group_left (x) max without (y) (c) or d", {"a:b", "c", "d"}),
        ('time() - m{file=~".*/x.prom"} > 2 ^ 30 and on (table) n', {"m", "n"}),
    ],
)
def test_names_are_those_of_metrics(expression: str, expected: set[str]) -> None:
    assert names(expression) == expected


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_alert_has_a_page_a_severity_and_a_case(alert: dict[str, dict[str, str]]) -> None:
    page = alert["annotations"]["runbook_url"]
    assert re.fullmatch(r"docs/[a-z-]+\.md", page)
    assert str(alert["alert"]) in (ROOT / page).read_text(), "the page does not say which alert it is for"
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert "{{ $labels.instance }}" in alert["annotations"]["summary"]
    assert any(case["name"] == alert["alert"] for case in CASES)


def test_the_page_lists_exactly_the_alerts_that_there_are() -> None:
    listed = re.findall(
        r"^\| (\w+) \| (page|ticket) \| \[[^]]*\]\(([a-z-]+\.md)\)", (ROOT / "docs/monitoring.md").read_text(), re.M
    )
    there = [(rule["alert"], rule["labels"]["severity"], rule["annotations"]["runbook_url"][5:]) for rule in ALERTS]
    assert listed == there


def test_what_is_recorded_is_what_is_read() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    read = {name for text in [*queries(), *(rule["expr"] for rule in ALERTS)] for name in names(text) if ":" in name}
    assert recorded == read


def test_every_panel_asks_for_the_chosen_hosts_and_source() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len(panels) > 20
    for panel in panels:
        assert panel["datasource"]["uid"] == "${source}"
        assert all('instance=~"$host"' in target["expr"] for target in panel["targets"]), panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
