"""The doctor of a host compares its server with the plan: roles, grants, extensions, migrations, other databases."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

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
    assert finding.fix.startswith("runuser -u postgres -- provision migrate ")
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


def test_reports_a_stopped_server_with_the_reason(plan: Plan) -> None:
    stopped = replace(plan, server=replace(plan.server, port=1))
    (finding,) = [each for each in look_at(stopped).findings if each.area == "connection"]
    assert finding.id == "reach-socket"
    assert finding.fix
