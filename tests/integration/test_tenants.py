"""Tenants on a real server behind a real PgBouncer: created, separate, repaired, migrated, exported and dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provision import system
from provision.host.tenants import catalog, login
from tests.tenants import Place, place


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.fixture(autouse=True)
def _evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path / "evidence")


def known(here: Place) -> list[str]:
    with login.superuser(here.plan) as session:
        return [each.name for each in catalog.known(session)]


def test_tenant_stores_and_finds_a_memory_through_the_pooler(here: Place) -> None:
    here.add("acme")
    here.add("beta")
    here.remember("acme", "only of acme")
    here.remember("beta", "only of beta")
    for name in ("acme", "beta"):
        for pooled in (False, True):
            rows = here.ask(f"{name}_app", "SELECT content FROM memories", pooled=pooled)
            assert rows == [(f"only of {name}",)]
            assert here.ask(f"{name}_readonly", "SELECT count(*) FROM memories", pooled=pooled) == [(1,)]
    assert here.ask("acme_app", "SELECT version, dirty FROM schema_migrations") == [(2, False)]
    assert known(here) == ["acme", "beta"]


def test_second_call_changes_nothing(here: Place) -> None:
    here.add("twice")
    assert here.add("twice").changes == ()
    assert here.migrate("twice") == []
    assert here.converge() == []


def test_temporary_logins_are_gone_and_own_nothing(here: Place) -> None:
    here.add("clean")
    assert here.server.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE '%_job_%'") == "0"
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'clean'::regnamespace"
    assert here.server.psql(owners, "minion") == "clean"
