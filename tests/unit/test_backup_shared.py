"""Evidence that members of a cluster share: which of two pieces counts."""

from __future__ import annotations

from typing import Any

import pytest

from provision.host.backup import shared

OLD = {"when": "2026-11-28 10:00:00+00", "host": "db1", "passed": True}
NEW = {"when": "2026-11-28 11:00:00+00", "host": "db2", "passed": False, "failure": "damaged"}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (NEW, OLD, True),
        (OLD, NEW, False),
        (OLD, {}, True),
        ({}, OLD, False),
        (OLD, dict(OLD), False),
    ],
)
def test_newer_evidence_replaces_older(one: dict[str, Any], other: dict[str, Any], expected: bool) -> None:
    assert shared.replaces(one, other, "db3") is expected


def test_mark_of_a_running_test_stays_on_its_host() -> None:
    assert not shared.replaces({**NEW, "failure": "started but not finished"}, OLD, "db2")


def test_last_word_of_a_test_is_that_of_its_host() -> None:
    begun, ended = {**NEW, "failure": "started but not finished"}, {**NEW, "passed": True}
    assert shared.replaces(ended, begun, "db2")
    assert not shared.replaces(ended, {**NEW, "passed": False}, "db1")
