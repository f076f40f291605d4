"""The alert rules, by Prometheus' own promtool: sound, and each alert fires for its cause alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from tests.contract.repository import ROOT
from tests.expressions import queries, rules

RULES = ROOT / "templates/monitoring/rules.yml"
CASES = [Path(__file__).with_name("alerts") / f"{name}.test.yml" for name in ("rules", "hours")]


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)


def test_prometheus_accepts_the_rules() -> None:
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    asked = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": asked}]}))
    checked = promtool("check", "rules", tmp_path / "rules.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_for_its_cause_and_for_nothing_else() -> None:
    tested = promtool("test", "rules", *CASES)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_case_fails_without_its_alert(tmp_path: Path) -> None:
    text = yaml.safe_load(RULES.read_text())
    for group in text["groups"]:
        group["rules"] = [rule for rule in group["rules"] if "alert" not in rule]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(text))
    copies, number = [], 0
    for path in CASES:
        cases = yaml.safe_load(path.read_text())
        number += len(cases["tests"])
        copies.append(tmp_path / path.name)
        copies[-1].write_text(yaml.safe_dump({**cases, "rule_files": [str(tmp_path / "rules.yml")]}))
    tested = promtool("test", "rules", *copies)
    said = tested.stdout + tested.stderr
    assert said.count("got:[]") == number
    assert [rule["alert"] for rule in rules("alert") if f"alertname: {rule['alert']}" not in said] == []
