"""Conversion of a host of the old layout, on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from provision import system
from provision.cli.plan import command
from provision.plan import convert

VERIFIED = {"server": "17.6", "extensions": {"vector": "0.8.0"}, "migration": 12, "tables": ["agents"], "packages": {}}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the old layout."""
    monkeypatch.setattr(system, "EVIDENCE", tmp_path / "evidence")
    folder = tmp_path / "provision"
    folder.mkdir()
    (folder / "host.json").write_text(json.dumps({"schema": 1, "profile": "prod", "verified": VERIFIED}))
    (folder / "backup.json").write_text("{}")
    (folder / "maintenance.json").write_text("{}")
    (folder / "plan.json").write_text("{}")
    return folder


def test_old_layout_is_removed_and_its_verification_kept(old: Path) -> None:
    assert convert.convert(old)
    assert [path.name for path in old.iterdir()] == ["plan.json"]
    assert system.evidence("verified") == {"schema": 1, **VERIFIED}
    assert not convert.convert(old)


def test_newer_evidence_is_not_overwritten(old: Path) -> None:
    system.keep("verified", {"server": "17.7"})
    assert convert.convert(old)
    assert system.evidence("verified")["server"] == "17.7"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"verified": {}}', '{"verified": 1}'])
def test_record_without_a_verification_leaves_no_evidence(old: Path, text: str) -> None:
    (old / "host.json").write_text(text)
    assert convert.convert(old)
    assert not (old / "host.json").exists()
    assert system.evidence("verified") == {}


def test_interrupted_conversion_is_completed(old: Path) -> None:
    (old / "backup.json").unlink()
    assert convert.convert(old)
    assert [path.name for path in old.iterdir()] == ["plan.json"]


def test_host_that_was_never_of_the_old_layout_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "backup.json").write_text("{}")
    assert not convert.convert(tmp_path)
    assert (tmp_path / "backup.json").exists()


def test_command_reports_whether_it_changed_the_host(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "FOLDER", old)
    shown = [CliRunner().invoke(command, ["convert", "--json"]).output for _ in range(2)]
    assert [json.loads(text) for text in shown] == [{"changed": True}, {"changed": False}]
