"""What PromQL expressions of rules and dashboard name. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.contract.repository import ROOT

RULES: dict[str, Any] = yaml.safe_load((ROOT / "templates/monitoring/rules.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((ROOT / "templates/monitoring/dashboard.json").read_text())
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"}


def rules(kind: str) -> list[dict[str, Any]]:
    """Give the rules of a kind: alert or record."""
    return [rule for group in RULES["groups"] for rule in group["rules"] if kind in rule]


def queries() -> list[str]:
    """Give every expression of the dashboard, with a host in place of its variable."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    found += [note["expr"] for note in DASHBOARD["annotations"]["list"]]
    return [text.replace("$host", ".*") for text in found]


def names(expression: str) -> set[str]:
    """Give the metrics that an expression reads: what is no word of the language, function, label or number."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)\b(?!\s*\()", bare)
    return {name for name in found if name not in WORDS}
