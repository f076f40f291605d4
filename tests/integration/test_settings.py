"""Settings of roles on a real server: stored as requested, compared in the server's form, unchanged by a second run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from plugins.modules import host_plan
from provision.database import connect_pinned
from provision.host import settings
from provision.host.access import Access, Role
from provision.tuning import catalogue
from tests import catalogue as maker
from tests import embedded
from tests.clusters import Cluster

ROLE = "with_settings"


@pytest.fixture
def access(cluster: Cluster) -> Iterator[Access]:
    with connect_pinned(cluster.url("postgres"), application="test") as connection:
        yield Access(connection)
        connection.execute(f"DROP ROLE IF EXISTS {ROLE}".encode())


def converge(access: Access, given: dict[Any, Any]) -> list[str]:
    """Converge the role as a run does: through the plan's judgement, then on the server. Return the changes."""
    judged = catalogue.judge("settings", given, 15, role=True)
    assert judged.problems == []
    access.changes.clear()
    access.roles([Role(ROLE, "monitor", settings={name: str(text) for name, text in judged.values.items()})])
    return list(access.changes)


def shown(cluster: Cluster, name: str) -> str:
    return cluster.psql(f"SELECT current_setting('{name}')", user=ROLE)


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"search_path": "app, public"}, "search_path", "app, public"),
        ({"search_path": ["app", "public"]}, "search_path", "app, public"),
        ({"search_path": ["$user", "My Schema", 'a"b']}, "search_path", '"$user", "My Schema", "a""b"'),
        ({"search_path": ""}, "search_path", '""'),
        ({"SEARCH_PATH": 'App, "Public"'}, "search_path", 'app, "Public"'),
        ({"session_preload_libraries": "auto_explain, pg_trgm"}, "session_preload_libraries", "auto_explain, pg_trgm"),
        ({"temp_tablespaces": ["pg_default", "pg_global"]}, "temp_tablespaces", "pg_default, pg_global"),
        ({"timezone": "Asia/Kolkata"}, "TimeZone", "Asia/Kolkata"),
        ({"TimeZone": "utc"}, "TimeZone", "UTC"),
        ({"DateStyle": "iso, mdy"}, "DateStyle", "ISO, MDY"),
        ({"datestyle": ["German"]}, "DateStyle", "German, DMY"),
        ({"work_mem": "65536kB"}, "work_mem", "64MB"),
        ({"Work_Mem": 65536}, "work_mem", "64MB"),
        ({"sort_mem": "64MB"}, "work_mem", "64MB"),
        ({"statement_timeout": "0.5min"}, "statement_timeout", "30s"),
        ({"jit": False}, "jit", "off"),
        ({"jit": "No"}, "jit", "off"),
        ({"random_page_cost": 0.9}, "random_page_cost", "0.9"),
        ({"seq_page_cost": "1e0"}, "seq_page_cost", "1"),
        ({"synchronous_commit": "LOCAL"}, "synchronous_commit", "local"),
        ({"synchronous_commit": True}, "synchronous_commit", "on"),
        ({"client_min_messages": "DEBUG"}, "client_min_messages", "debug2"),
        ({"log_statement": "mod"}, "log_statement", "mod"),  # for superusers, who may set it for a role
        ({"log_min_duration_statement": "1s"}, "log_min_duration_statement", "1s"),
        ({"default_transaction_isolation": "Repeatable Read"}, "default_transaction_isolation", "repeatable read"),
        ({"transaction_timeout_of.app": 5}, "transaction_timeout_of.app", "5"),
        ({"App.Tenant": "acme, inc"}, "app.tenant", "acme, inc"),
        ({"idle_in_transaction_session_timeout": 1}, "idle_in_transaction_session_timeout", "1ms"),
        ({"my.text": "it's = \\ quoted"}, "my.text", "it's = \\ quoted"),
        ({"role": "pg_monitor"}, "role", "pg_monitor"),
    ],
)  # fmt: skip
def test_a_setting_is_stored_as_requested_and_a_second_run_changes_nothing(
    cluster: Cluster, access: Access, given: dict[str, Any], name: str, expected: str
) -> None:
    assert len([change for change in converge(access, given) if " = " in change]) == 1
    assert shown(cluster, name) == expected
    assert converge(access, given) == []


def test_a_list_that_an_earlier_version_stored_as_one_name_is_repaired(cluster: Cluster, access: Access) -> None:
    converge(access, {})
    cluster.psql(f"ALTER ROLE {ROLE} SET search_path = 'app, public'; ALTER ROLE {ROLE} SET timezone = 'UTC'")
    assert shown(cluster, "search_path") == '"app, public"'
    assert converge(access, {"search_path": "app, public", "timezone": "UTC"}) == [
        f"role {ROLE}: search_path = app, public"
    ]
    assert shown(cluster, "search_path") == "app, public"


def test_what_is_no_longer_requested_is_reset(cluster: Cluster, access: Access) -> None:
    converge(access, {"work_mem": "64MB", "app.tenant": "acme"})
    assert converge(access, {}) == [f"role {ROLE}: app.tenant reset", f"role {ROLE}: work_mem reset"]
    assert cluster.psql("SELECT count(*) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
                        f" WHERE rolname = '{ROLE}'") == "0"  # fmt: skip


def test_a_value_that_only_the_server_can_judge_is_named(access: Access) -> None:
    with pytest.raises(psycopg.Error, match='invalid value for parameter "DateStyle": "iso, never"'):
        converge(access, {"DateStyle": "iso, never"})


def test_doctor_sees_no_difference_in_equal_spellings(cluster: Cluster, access: Access) -> None:
    converge(access, {})
    cluster.psql(f"ALTER ROLE {ROLE} SET work_mem = 65536; ALTER ROLE {ROLE} SET jit = 'no'")
    with connect_pinned(cluster.url("postgres"), application="test") as connection:
        planned = Access(connection, plan=True)
        planned.roles([Role(ROLE, "monitor", settings={"work_mem": "64MB", "jit": "off"})])
        assert planned.changes == []


def test_an_invalid_stored_value_equals_only_itself(cluster: Cluster) -> None:
    with connect_pinned(cluster.url("postgres"), application="test") as connection:
        assert settings.same(connection, "work_mem", "lots", "lots")
        assert not settings.same(connection, "work_mem", "lots", "64MB")


def test_the_probe_reads_the_locale_of_a_running_and_of_a_stopped_cluster(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [{"major": "15", "name": "main", "running_pid": 1, "running_port": cluster.port}]
    monkeypatch.setenv("PGHOST", cluster.host)
    seen = host_plan.cluster_locale(known, 15)
    assert (seen["encoding"], seen["collate"], seen["ctype"]) == ("UTF8", "C.UTF-8", "C.UTF-8")
    assert {"postgres", "template1"} <= set(seen["databases"])
    (tmp_path / "15/main").mkdir(parents=True)
    (tmp_path / "15/main/postgresql.conf").write_text((cluster.data / "postgresql.conf").read_text())
    monkeypatch.setattr(host_plan, "CONFIGURATION", tmp_path)
    stopped = [{**known[0], "running_pid": 0, "running_port": 0}]
    assert host_plan.cluster_locale(stopped, 15) == {
        "encoding": "", "collate": "C.UTF-8", "ctype": "", "databases": []
    }  # fmt: skip
    assert host_plan.cluster_locale(stopped, 17) == {}


@pytest.mark.parametrize("major", embedded.VERSIONS)
def test_the_catalogue_is_that_of_the_server(major: int) -> None:
    known = {row.name: row for row in catalogue.of(major).values() if not row.name.startswith(("hnsw.", "ivfflat."))}
    with embedded.cluster(major) as server:
        server.configure(maker.PRELOADED)
        with server.running() as session:
            seen = {row.name: row for row in maker.read(session, major)}
            assert set(seen) == set(known)
            for name, row in seen.items():
                assert (row.kind, row.context, row.unit, row.values) == (
                    known[name].kind, known[name].context, known[name].unit, known[name].values
                )  # fmt: skip
                if row.kind not in ("integer", "real") or row.context == "internal":
                    continue
                for text in (known[name].least, known[name].most):
                    assert _accepted(session, name, text) == catalogue.judge("x", {name: text}, major).problems == []


def _accepted(session: psycopg.Connection[tuple[object, ...]], name: str, text: str) -> list[str]:
    """Return the server's complaint of a value's range; a setting that a session cannot change counts as accepted."""
    try:
        session.execute("SELECT set_config(%s, %s, true)", (name, text))
    except psycopg.errors.InvalidParameterValue as error:
        return [str(error)] if "outside the valid range" in str(error) else []
    except psycopg.Error:
        pass
    return []
