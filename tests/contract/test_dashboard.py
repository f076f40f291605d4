"""The dashboard has only what Grafana's published schema has.

It is read with the models of grafana-foundation-sdk, which drop the keys that they do not know.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.expressions import DASHBOARD

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
