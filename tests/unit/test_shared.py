"""A run with tags that would change a value for one role only is refused with the tags to add."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.module_utils import applied
from provision.controller import inputs
from tests import plans
from tests.contract.repository import ROOT

REMOTE: dict[str, Any] = {
    "backup_repository_host": "192.0.2.7",
    "backup_repository_inventory_name": "backup1",
    "postgresql_version": 17,
    "postgresql_repository": "distribution",
    "pgvector_install_method": "package",
}
APPLIED = {
    "postgresql": {"stanza": "db1", "port": "5432", "tls": "on", "owner": "minion", "preload": "pg_stat_statements"},
    "backup": {"stanza": "db1", "port": "5432"},
    "pgbouncer": {"port": "5432", "tls": "require", "owner": "minion", "route": "127.0.0.1"},
    "monitoring": {"port": "5432", "owner": "minion", "database": "minion"},
}
"""What a run with the defaults of prod leaves."""


def reported(tags: str, given: dict[str, Any] | None = None, changed: dict[str, dict[str, str]] | None = None) -> str:
    files = {role: {**values, **(changed or {}).get(role, {})} for role, values in APPLIED.items()}
    probe = {"applied": files}
    found = plans.built("prod", {**REMOTE, **(given or {})}, probe, selected=frozenset({"toolkit", *tags.split(",")}))
    return "\n".join(found.problems)


@pytest.mark.parametrize("role", ["tls", "postgresql", "database", "pgbouncer", "backup", "monitoring", "verify"])
def test_a_run_that_changes_nothing_shared_needs_no_other_tag(role: str) -> None:
    assert reported(role) == ""


@pytest.mark.parametrize(
    ("tags", "given", "expected"),
    [
        ("backup", {"backup_stanza": "pg2"},
         "backup_stanza or backup_physical: pg2 is requested, postgresql has db1 on this host; run again with --tags "
         "backup,postgresql, or without tags"),
        ("postgresql", {"backup_stanza": "pg2"}, "backup has db1 on this host"),
        ("postgresql", {"postgresql_port": 5433},
         "postgresql_port: 5433 is requested, backup has 5432, monitoring has 5432, pgbouncer has 5432 on this host"),
        ("verify", {"postgresql_port": 5433}, "postgresql has 5432 on this host"),
        ("database", {"database_owner": "agents"}, "database_owner: agents is requested, monitoring has minion"),
        ("monitoring", {"database_owner": "agents"}, "pgbouncer has minion, postgresql has minion on this host"),
        ("database", {"database_name": "agents"}, "database_name: agents is requested, monitoring has minion"),
        ("tls", {"tls_enabled": False, "monitoring_listen_address": "127.0.0.1"},
         "tls_enabled: off is requested, pgbouncer has require, postgresql has on on this host"),
        ("postgresql", {"postgresql_listen_addresses": ["192.0.2.1"]},
         "postgresql_listen_addresses or tls_enabled: /var/run/postgresql is requested, pgbouncer has 127.0.0.1"),
        ("database", {"database_extensions": ["vector", "pg_cron"]},
         "database_extensions has pg_cron, whose library the server does not preload; run again with --tags "
         "database,postgresql, or without tags"),
        ("database,verify", {"database_extensions": ["pgaudit"]}, "with --tags database,verify,postgresql, or"),
    ],
)  # fmt: skip
def test_names_the_tags_that_a_changed_variable_needs(tags: str, given: dict[str, Any], expected: str) -> None:
    credentials = {
        role.replace("minion", "agents"): each for role, each in plans.SECRETS["database_credentials"].items()
    }
    owner = {"database_credentials": credentials} if "database_owner" in given else {}
    assert expected in reported(tags, {**given, **owner})


@pytest.mark.parametrize(
    ("tags", "given"),
    [
        ("backup,postgresql", {"backup_stanza": "pg2"}),
        ("maintenance", {"backup_stanza": "pg2"}),  # uses no stanza
        ("postgresql,pgbouncer,backup,monitoring", {"postgresql_port": 5433}),
        ("database", {"database_extensions": ["pg_repack", "uuid-ossp", "postgis"]}),
        ("database,postgresql", {"database_extensions": ["pg_cron"]}),
    ],
)
def test_accepts_a_run_with_every_tag_that_is_needed(tags: str, given: dict[str, Any]) -> None:
    assert reported(tags, given) == ""


def test_a_run_that_was_killed_between_two_roles_is_noticed_by_the_next_with_tags() -> None:
    assert "postgresql has db1 on this host" in reported(
        "backup", {"backup_stanza": "pg2"}, {"backup": {"stanza": "pg2"}}
    )


def test_roles_that_never_converged_the_host_are_not_missed() -> None:
    found = plans.built("prod", {**REMOTE, "backup_stanza": "pg2"}, {"applied": {}}, selected=frozenset({"backup"}))
    assert found.problems == ()


def test_values_are_read_from_the_files_that_the_roles_place(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = ROOT / "tests/templates/golden/prod"
    places = {
        "postgresql-50-provision.conf": applied.SETTINGS.format(major=14),
        "postgresql-pg_ident.conf": applied.IDENT.format(major=14),
        "backup-pgbackrest.conf": applied.BACKUP,
        "pgbouncer-databases.ini": f"{applied.POOLER}/databases.ini",
        "pgbouncer-tls.ini": f"{applied.POOLER}/tls.ini",
        "monitoring-prometheus-postgres-exporter.conf": applied.EXPORTER,
    }
    for name, place in places.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text((golden / name).read_text())
    monkeypatch.setattr(applied, "ROOT", tmp_path)
    assert applied.values(14) == {
        **APPLIED,
        "postgresql": {**APPLIED["postgresql"], "preload": "pg_stat_statements,auto_explain"},
    }
    (tmp_path / applied.BACKUP).write_text("[global]\nrepo1-path=/var/lib/pgbackrest\n[pg9]\n")  # a backup host's
    assert "backup" not in applied.values(14)
    assert applied.values(15) == {role: each for role, each in applied.values(14).items() if role != "postgresql"}


@pytest.mark.parametrize(
    ("tags", "skipped", "expected"),
    [
        (["all"], [], {"packages", "toolkit", "tls", "postgresql", "backup"}),
        (["backup"], [], {"packages", "toolkit", "backup"}),
        (["postgresql"], [], {"packages", "toolkit", "tls", "postgresql"}),
        (["all"], ["backup", "toolkit"], {"packages", "tls", "postgresql"}),
        (["tagged"], [], {"packages", "toolkit", "tls", "postgresql", "backup"}),
        (["plan"], [], set()),
    ],
)
def test_roles_of_a_run_are_those_that_its_tags_select(tags: list[str], skipped: list[str], expected: set[str]) -> None:
    roles = ["minion.provision.toolkit", "packages", "tls", "postgresql", "backup"]
    assert inputs.selected(roles, tags, skipped) == expected
