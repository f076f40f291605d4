"""The doctor of a host compares its server with the plan: roles, grants, extensions, migrations, other databases."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from provision.checks import drift
from provision.checks.doctor import look_at
from provision.checks.finding import Finding, Severity
from provision.cli import root
from provision.host.access import converge
from provision.plan.schema import Plan, Role
from tests.clusters import Cluster
from tests.integration.conftest import MIGRATIONS
from tests.plans import sample

NAME, OWNER, READER = "drift", "holder", "holder_readonly"
TIMEOUTS = {"statement_timeout": "30s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "60s"}


@pytest.fixture
def plan(cluster: Cluster) -> Iterator[Plan]:
    """The plan of a converged database; the host has neither pooler nor backups."""
    roles = (
        Role(OWNER, "owner", 20, None, {}, "present", has_password=False),
        Role(READER, "read", 10, None, TIMEOUTS, "present", has_password=False),
    )
    plan = sample(
        server={
            "port": cluster.port,
            "socket_directory": cluster.host,
            "data_directory": str(cluster.data),
        },
        access={
            "database": NAME,
            "owner": OWNER,
            "databases": {NAME: OWNER},
            "roles": roles,
            "extensions": ("vector", "uuid-ossp"),
            "guard": False,  # migrations need no backup
        },
        pooler={"enabled": False},
        backup={"physical": False, "age_limit_h": 0},
        migrations={"directory": str(MIGRATIONS)},
    )
    listed = [
        {"name": role.name, "kind": role.kind, "connection_limit": role.connection_limit, "settings": role.settings}
        for role in roles
    ]
    server = f"host={plan.server.socket_directory} port={plan.server.port} user=postgres"
    wanted = {"database": NAME, "owner": OWNER, "guard": plan.access.guard, "extensions": plan.access.extensions}
    converge(server, {**wanted, "roles": listed})
    words = ["migrate", "up", "--path", str(MIGRATIONS), "--database", cluster.url(NAME, OWNER)]
    done = CliRunner().invoke(root, words)
    assert done.exit_code == 0, done.output
    converge(server, {**wanted, "roles": listed})
    yield plan
    cluster.psql(f"DROP DATABASE {NAME} WITH (FORCE)")
    for role in (READER, OWNER):
        cluster.psql(f"DROP ROLE {role}")


def found(plan: Plan, check: str) -> list[Finding]:
    return [each for each in look_at(plan).findings if each.id == check]


def statement(finding: Finding) -> str:
    words = shlex.split(finding.fix)
    return words[words.index("-c") + 1]


def test_reports_a_revoked_grant_with_the_statement_that_restores_it(cluster: Cluster, plan: Plan) -> None:
    assert found(plan, "access-drift") == []
    cluster.psql(f"REVOKE SELECT ON memories FROM {READER}", NAME)
    (finding,) = found(plan, "access-drift")
    assert finding.seen == f"to apply: table memories: GRANT SELECT TO {READER}"
    assert finding.why == "grants differ from the inventory"
    cluster.psql(statement(finding), NAME)
    assert found(plan, "access-drift") == []


def test_reports_a_missing_extension_once(cluster: Cluster, plan: Plan) -> None:
    cluster.psql('DROP EXTENSION "uuid-ossp" CASCADE', NAME)
    (finding,) = found(plan, "extensions-missing")
    assert "extension uuid-ossp is missing" in finding.seen
    assert [each for each in found(plan, "access-drift") if "extension" in each.seen] == []


def test_reports_a_dirty_version_once_with_the_command_that_resolves_it(cluster: Cluster, plan: Plan) -> None:
    cluster.psql("UPDATE schema_migrations SET dirty = true", NAME)
    (finding,) = found(plan, "migrations-dirty")
    assert finding.fix.startswith("runuser -u postgres -- provision migrate status ")
    assert finding.fix.endswith(f"--path {MIGRATIONS} --database {shlex.quote(plan.server.url(NAME, OWNER))}")


def test_reports_pending_and_edited_migrations(cluster: Cluster, plan: Plan) -> None:
    folder = Path(shutil.copytree(MIGRATIONS, cluster.root / "changed"))  # readable by postgres
    first = min(folder.glob("*.up.sql"))
    first.write_text(first.read_text() + "\n-- edited\n")
    (folder / "900_add_nothing.up.sql").write_text("SELECT 1;\n")
    (folder / "900_add_nothing.down.sql").write_text("SELECT 1;\n")
    changed = replace(plan, migrations=replace(plan.migrations, directory=str(folder)))
    (edited,) = found(changed, "migrations-differ")
    assert edited.seen.startswith(f"{first.name}: was edited after it was applied")
    assert edited.severity is Severity.CRITICAL
    (pending,) = found(changed, "migrations-pending")
    assert pending.seen == "not applied: 900 add_nothing"
    assert pending.fix.startswith(f"runuser -u postgres -- provision migrate up --path {folder}")


def test_reports_an_unreadable_version_table(cluster: Cluster, plan: Plan) -> None:
    cluster.psql("ALTER TABLE schema_migrations RENAME version TO number", NAME)
    (finding,) = found(plan, "migrations-unreadable")
    assert finding.severity is Severity.CRITICAL
    assert found(plan, "migrations-pending") == []
    (query,) = found(plan, "migrations-dirty")
    assert query.seen == 'the check failed: column "version" of relation "schema_migrations" does not exist'
    assert query.counts


def test_version_table_that_its_owner_has_locked_is_a_finding(cluster: Cluster, plan: Plan) -> None:
    """Attack: without a limit, the doctor of root waits as long as the owner keeps the lock."""
    with psycopg.connect(cluster.url(plan.access.database)) as owner:
        owner.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        (row,) = drift.unreadable(plan, owner)
    assert "lock timeout" in row[0]


def test_a_dirty_version_of_unknown_content_gets_both_ways_out(cluster: Cluster, plan: Plan) -> None:
    cluster.psql("UPDATE schema_migrations SET dirty = true", NAME)
    (finding,) = found(plan, "migrations-dirty")
    current, before = (
        int(each) for each in cluster.psql("SELECT version, version - 1 FROM schema_migrations", NAME).split("|")
    )
    command, _, advice = finding.fix.partition("  # ")
    assert command.startswith("runuser -u postgres -- provision migrate status ")
    assert f"if nothing of it is applied: runuser -u postgres -- provision migrate force {before} --path" in advice
    assert f"if all of it is: runuser -u postgres -- provision migrate force {current} --path" in advice


def test_reports_used_up_connections_from_the_reserved_ones_and_ends_idle_sessions(
    cluster: Cluster, plan: Plan
) -> None:
    assert found(plan, "connections") == []
    cluster.psql(f"ALTER ROLE {READER} CONNECTION LIMIT 2")
    try:
        sessions = [psycopg.connect(cluster.url(NAME, READER)) for _ in range(2)]
        (finding,) = found(plan, "connections")
        assert finding.seen == f"role {READER} uses 2 of its 2 connections, 2 of them idle"
        assert finding.severity is Severity.CRITICAL
        cluster.psql(statement(finding), "postgres")
        cluster.psql("SELECT pg_sleep(0.3)")
        assert found(plan, "connections") == []
        assert all(session.closed or not alive(session) for session in sessions)
    finally:
        cluster.psql(f"ALTER ROLE {READER} CONNECTION LIMIT 10")


def test_reports_a_server_whose_ordinary_connections_are_used_up(cluster: Cluster, plan: Plan) -> None:
    cluster.psql(f"ALTER ROLE {OWNER} CONNECTION LIMIT -1")
    sessions = []
    try:
        with suppress(psycopg.OperationalError):  # the last one is refused
            for _ in range(200):
                sessions.append(psycopg.connect(cluster.url(NAME, OWNER)))
        assert 90 < len(sessions) < 100
        (finding,) = found(plan, "connections")
        assert re.fullmatch(rf"9\d of 97 connections are in use; role {OWNER} has 9\d, 9\d of them idle", finding.seen)
        cluster.psql(statement(finding), "postgres")
        cluster.psql("SELECT pg_sleep(0.5)")
        assert found(plan, "connections") == []
    finally:
        for session in sessions:
            session.close()


def alive(session: psycopg.Connection[tuple[object, ...]]) -> bool:
    try:
        session.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def test_reports_a_forgotten_slot_long_before_its_limit_and_drops_it(cluster: Cluster, plan: Plan) -> None:
    cluster.psql("SELECT pg_create_physical_replication_slot('forgotten', true)")
    try:
        assert found(plan, "replication-slots") == []  # one without a consumer for a moment
        for _ in range(17):
            cluster.psql("SELECT pg_logical_emit_message(false, 'x', 'y'), pg_switch_wal()")
        (finding,) = found(plan, "replication-slots")
        assert re.match(
            r"physical slot forgotten has no consumer and keeps 2[5-9]\d MB of WAL; without a limit", finding.seen
        )
        assert finding.severity is Severity.CRITICAL
        cluster.psql(statement(finding))
        assert found(plan, "replication-slots") == []
    finally:
        cluster.psql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def test_roles_are_judged_by_the_plan(cluster: Cluster, plan: Plan) -> None:
    cluster.psql("CREATE ROLE crowd LOGIN; CREATE ROLE other_app LOGIN CONNECTION LIMIT 1")
    cluster.psql(f"ALTER ROLE {READER} CONNECTION LIMIT -1")
    try:
        limits = {each.seen.split()[1]: each.fix for each in found(plan, "limits")}
        assert limits[READER] == plan.site("database")
        assert set(limits) >= {"crowd", READER}
        cluster.psql(shlex.split(limits["crowd"])[-1], NAME)
        assert "crowd" not in {each.seen.split()[1] for each in found(plan, "limits")}
        (finding,) = [each for each in found(plan, "timeouts") if "other_app" in each.seen]
        for word in shlex.split(finding.fix)[8::2]:
            cluster.psql(word, NAME)
        assert [each for each in found(plan, "timeouts") if "other_app" in each.seen] == []
    finally:
        cluster.psql(f"DROP ROLE crowd, other_app; ALTER ROLE {READER} CONNECTION LIMIT 10")


def test_a_role_that_the_plan_leaves_unlimited_is_fixed_in_the_inventory(cluster: Cluster, plan: Plan) -> None:
    reader = next(each for each in plan.access.roles if each.name == READER)
    free = replace(
        plan, access=replace(plan.access, roles=(plan.access.roles[0], replace(reader, connection_limit=-1)))
    )
    cluster.psql(f"ALTER ROLE {READER} CONNECTION LIMIT -1")
    try:
        (finding,) = [each for each in found(free, "limits") if READER in each.seen]
    finally:
        cluster.psql(f"ALTER ROLE {READER} CONNECTION LIMIT 10")
    assert (
        finding.fix == f"{free.site('database')}  # first set its connection_limit, such as 10, in database_extra_roles"
    )


def test_reports_a_stopped_server_with_the_reason(plan: Plan) -> None:
    stopped = replace(plan, server=replace(plan.server, port=1))
    (finding,) = [each for each in look_at(stopped).findings if each.area == "connection"]
    assert finding.id == "reach-socket"
    assert finding.fix
