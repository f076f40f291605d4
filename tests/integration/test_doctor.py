"""The doctor names what was broken by hand on a real server, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner

from provision.checks.doctor import SQL_CHECKS
from provision.checks.finding import Severity
from provision.checks.hardening import examine
from provision.cli import root
from tests.clusters import Cluster

NAME = "patient"


@pytest.fixture
def patient(cluster: Cluster) -> Iterator[str]:
    cluster.psql(f"CREATE DATABASE {NAME}")
    cluster.psql(f"REVOKE ALL ON DATABASE {NAME} FROM PUBLIC; ALTER DATABASE {NAME} SET provision.profile = prod")
    cluster.psql("CREATE EXTENSION vector; REVOKE CREATE ON SCHEMA public FROM PUBLIC", NAME)
    yield cluster.url(NAME)
    cluster.psql(f"DROP DATABASE {NAME} WITH (FORCE)")


def found(url: str) -> dict[str, str]:
    with psycopg.connect(url, autocommit=True) as connection:
        return {each.id: each.seen for each in examine(connection, SQL_CHECKS)}


@pytest.mark.parametrize(
    ("broken", "mended", "check", "seen"),
    [
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
         "public-create", "PUBLIC may create in schema public"),
        (f"GRANT CONNECT ON DATABASE {NAME} TO PUBLIC", f"REVOKE CONNECT ON DATABASE {NAME} FROM PUBLIC",
         "public-connect", f"PUBLIC may CONNECT database {NAME}"),
        ("CREATE ROLE king SUPERUSER", "DROP ROLE king", "superusers", "role king is a superuser"),
        ("CREATE ROLE crowd LOGIN", "DROP ROLE crowd", "limits", "role crowd has no connection limit"),
        ("CREATE ROLE x_app LOGIN CONNECTION LIMIT 1", "DROP ROLE x_app", "timeouts", "role x_app has no lock_timeout"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'", "DROP FUNCTION f()",
         "security-definer", "function f()"),
        ("ALTER SYSTEM SET work_mem = '5MB'", "ALTER SYSTEM RESET work_mem", "shadowed",
         "work_mem is set by ALTER SYSTEM to 5MB"),
        ("ALTER SYSTEM SET log_statement = 'all'", "ALTER SYSTEM RESET log_statement", "log-statement",
         "log_statement = all"),
        ("ALTER SYSTEM SET full_page_writes = off", "ALTER SYSTEM RESET full_page_writes", "durability",
         "full_page_writes = off"),
        ("ALTER SYSTEM SET max_connections = 101", "ALTER SYSTEM RESET max_connections", "pending-restart",
         "max_connections waits for a restart"),
        ("DROP EXTENSION vector", "CREATE EXTENSION vector", "vector", "type vector does not exist"),
    ],
)  # fmt: skip
def test_names_what_was_broken_until_it_is_mended(
    cluster: Cluster, patient: str, broken: str, mended: str, check: str, seen: str
) -> None:
    healthy = found(patient)
    cluster.psql(broken, NAME)
    cluster.psql("SELECT pg_reload_conf(), pg_sleep(0.3)", NAME)
    try:
        sick = found(patient)
    finally:
        cluster.psql(mended, NAME)
        cluster.psql("SELECT pg_reload_conf(), pg_sleep(0.3)", NAME)
    assert seen in sick[check]
    assert seen not in healthy.get(check, "")
    assert found(patient) == healthy


def test_names_access_without_a_password(patient: str) -> None:
    # The cluster of the tests trusts loopback: the doctor must say so.
    assert "trust" in found(patient)["hba-methods"]


def test_development_is_excused_by_name_and_not_in_silence(cluster: Cluster, patient: str) -> None:
    cluster.psql(f"ALTER DATABASE {NAME} SET provision.profile = dev")
    with psycopg.connect(patient, autocommit=True) as connection:
        severities = {each.id: each.severity for each in examine(connection, SQL_CHECKS)}
    assert severities["archiving"] is Severity.ACCEPTED
    assert severities["hba-methods"] is Severity.CRITICAL


def test_what_a_role_may_not_see_is_said(cluster: Cluster, patient: str) -> None:
    assert patient
    cluster.psql(f"CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; GRANT CONNECT ON DATABASE {NAME} TO watcher")
    try:
        with psycopg.connect(cluster.url(NAME, "watcher"), autocommit=True) as connection:
            severities = {each.id: each.severity for each in examine(connection, SQL_CHECKS)}
    finally:
        cluster.psql(f"REVOKE ALL ON DATABASE {NAME} FROM watcher; DROP ROLE watcher")
    assert severities["verifiers"] is Severity.UNSEEN
    assert severities["hba-methods"] is Severity.UNSEEN


def test_the_command_exits_3_and_prints_what_to_do(patient: str) -> None:
    text = CliRunner().invoke(root, ["doctor", "--database", patient])
    assert text.exit_code == 3
    assert "critical: hba-methods (access)" in text.output
    assert f"{len(SQL_CHECKS) + 1} checks, " in text.output
    answer = json.loads(CliRunner().invoke(root, ["doctor", "--database", patient, "--json"]).output)
    assert answer["checks"] == len(SQL_CHECKS) + 1
    assert {"id", "area", "severity", "seen", "wanted", "why", "fix", "safe"} == set(answer["findings"][0])
