"""Evidence of a restore test that allows destructive commands on a guarded database."""

import datetime
import json
from pathlib import Path

import pytest

from provision.host.migrate.evidence import doubt

NOW = datetime.datetime(2026, 11, 24, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"verified": {"when": "2026-11-24T02:00:00+00:00", "set": "20261123-010000F"}}', ""),
        ('{"verified": {"when": "2026-11-22T10:00:00+00:00"}}', "the last restore test was 50 h ago"),
        ('{"verified": null}', "no restore test has succeeded yet"),
        ("{}", "no restore test has succeeded yet"),
        ('{"verified": {"when": "yesterday"}}', "no restore test has succeeded yet"),
        ('{"verified": {"when": "2026-11-24T02:00:00"}}', "no restore test has succeeded yet"),
    ],
)
def test_only_a_recent_restore_test_counts(tmp_path: Path, text: str, answer: str) -> None:
    path = tmp_path / "backup.json"
    path.write_text(text)
    assert doubt("/var/run/postgresql", path, NOW) == answer


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_unreadable_evidence_does_not_count(tmp_path: Path, text: str) -> None:
    path = tmp_path / "backup.json"
    path.write_text(text)
    assert f"cannot read {path}: " in doubt("", path, NOW)


def test_host_without_backups_is_reported(tmp_path: Path) -> None:
    assert "this host makes no backups" in doubt("127.0.0.1", tmp_path / "backup.json", NOW)


def test_evidence_covers_this_host_only(tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    path.write_text(json.dumps({"verified": {"when": "2026-11-24T02:00:00+00:00"}}))
    assert (
        doubt("db1.example.org", path, NOW)
        == "the database is on db1.example.org, and so is the evidence of its backups"
    )
