"""The host lock goes to waiting runs in the order of their arrival; a run that stops asking loses its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.module_utils import lock
from plugins.plugin_utils.lock import Holder


def run(name: str) -> dict[str, Any]:
    return {"id": name, "pid": 1, "user": name, "controller": "here"}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lock and a list of waiting runs in a directory of this test; the lock's process ends with it."""
    monkeypatch.setattr(lock, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(lock, "QUEUE", tmp_path / "queue")
    yield
    if lock.held():
        lock.release(lock.read()["holder"])


def ask(name: str, *, waits: bool = True) -> tuple[bool, str]:
    answer = lock.acquire(run(name), 0, waits)
    return answer["taken"], answer["holder"]["id"]


def release() -> None:
    lock.release(lock.read()["holder"])


def test_waiting_runs_get_the_lock_in_the_order_of_their_arrival() -> None:
    assert ask("first") == (True, "first")
    assert ask("second") == (False, "first")
    assert ask("third") == (False, "first")
    release()
    assert ask("third") == (False, "second")
    assert ask("second") == (True, "second")
    assert ask("third") == (False, "second")
    release()
    assert ask("third") == (True, "third")


def test_a_run_that_stops_asking_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    ask("first")
    ask("second")
    ask("third")
    release()
    assert ask("third") == (False, "second")
    monkeypatch.setattr(lock, "ASKS_WITHIN_S", 0)
    assert ask("third") == (True, "third")


def test_a_run_that_does_not_wait_keeps_no_place() -> None:
    ask("first")
    assert ask("second", waits=False) == (False, "first")
    assert ask("third") == (False, "first")
    release()
    assert ask("third") == (True, "third")


def test_a_damaged_list_of_waiting_runs_is_replaced() -> None:
    ask("first")
    lock.QUEUE.write_text("{not JSON")
    assert ask("second") == (False, "first")
    release()
    assert ask("second") == (True, "second")


def test_the_message_says_who_is_in_the_way_and_how_long_this_run_waited() -> None:
    holder = Holder("db1", 0)
    other = {"id": "x", "machine": "other", "pid": 77, "user": "ada", "controller": "laptop", "since": 0}
    assert holder.arguments()["waits"] is False
    refused = holder.judge({"taken": False, "holder": {**other, "holder": 9}})
    assert refused.startswith("another run is changing db1: process 77 of ada on laptop, since 00:00:00 UTC. Nothing")
    assert "after waiting 0 s (plan_lock_wait)" in refused
    assert holder.judge({"taken": False, "holder": other}).startswith("another run waits for db1: process 77 of ada")
