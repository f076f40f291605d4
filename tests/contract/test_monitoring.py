"""Rules, dashboard and pages agree: each alert has its page and its case, and what is recorded is what is read.

The dashboard is read with the models that Grafana publishes (grafana-foundation-sdk), which drop what they do not know.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.contract.repository import ROOT
from tests.expressions import DASHBOARD, names, queries, rules

ALERTS = rules("alert")
CASES = yaml.safe_load((ROOT / "tests/integration/alerts/rules.test.yml").read_text())["tests"]


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


OF_PROMETHEUS = ["/annotations/list/0/titleFormat"]
"""Keys that the plugin Prometheus reads, beyond the dashboard's own schema."""


def unknown(written: Any, read: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of a JSON value that another one lacks or has with another value."""
    if isinstance(written, dict):
        for key, value in written.items():
            here = f"{path}/{key}"
            yield from unknown(value, read[key], here) if isinstance(read, dict) and key in read else [here]
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for number, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from unknown(one, other, f"{path}/{number}")
    elif written != read:
        yield path


def not_of_grafana(dashboard: dict[str, Any]) -> list[str]:
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(dashboard))))
    return list(unknown(dashboard, read))


def test_dashboard_has_only_keys_of_grafanas_schema() -> None:
    assert not_of_grafana(DASHBOARD) == OF_PROMETHEUS


@pytest.mark.parametrize(
    ("place", "key", "path"),
    [
        ((), "schemaVersoin", "/schemaVersoin"),
        (("panels", 1), "tragets", "/panels/1/tragets"),
        (("panels", 1, "fieldConfig", "defaults"), "untis", "/panels/1/fieldConfig/defaults/untis"),
        (("panels", 1, "targets", 0), "exrp", "/panels/1/targets/0/exrp"),
        (("panels", 1, "options"), "colourMode", "/panels/1/options/colourMode"),
    ],
)
def test_a_misspelt_key_is_found(place: tuple[str | int, ...], key: str, path: str) -> None:
    changed = copy.deepcopy(DASHBOARD)
    part: Any = changed
    for step in place:
        part = part[step]
    part[key] = "x"
    assert path in not_of_grafana(changed)
