"""Which evidence lets data of a prod database be destroyed."""

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
        ('{"verified": {"when": "2026-11-22T10:00:00+00:00"}}', "the last backup that a drill restored is 50 h old"),
        ('{"verified": null}', "no drill has restored a backup yet"),
        ("{}", "no drill has restored a backup yet"),
        ('{"verified": {"when": "yesterday"}}', "no drill has restored a backup yet"),
        ('{"verified": {"when": "2026-11-24T02:00:00"}}', "no drill has restored a backup yet"),
    ],
)
def test_only_a_fresh_drill_counts(tmp_path: Path, text: str, answer: str) -> None:
    path = tmp_path / "backup.json"
    path.write_text(text)
    assert doubt("/var/run/postgresql", path, NOW) == answer


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_evidence_that_cannot_be_read_is_no_evidence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "backup.json"
    path.write_text(text)
    assert "cannot be read" in doubt("", path, NOW)


def test_a_host_without_backups_says_so(tmp_path: Path) -> None:
    assert "this host makes no backups" in doubt("127.0.0.1", tmp_path / "backup.json", NOW)


def test_evidence_of_this_host_says_nothing_of_another(tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    path.write_text(json.dumps({"verified": {"when": "2026-11-24T02:00:00+00:00"}}))
    assert (
        doubt("db1.example.org", path, NOW)
        == "the database is on db1.example.org, and the evidence of its backups is there too"
    )
