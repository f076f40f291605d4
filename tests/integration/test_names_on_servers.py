"""Unusual names work all the way on real servers: SQL, access rules, connection strings, the pooler, a second run."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from provision import quoting
from provision.checks import drift
from provision.checks.finding import psql
from provision.database import connect, identifier
from provision.host import access
from provision.host.pooler import configuration
from provision.plan import hba, names, secrets
from tests.clusters import Cluster, as_server_user, free_port
from tests.plans import SALT, SAMPLE, plan
from tests.templates import test_render

ROLES = ["jan.kowalski@corp.com", "O'Brien", "Sales Reader", "ünïcödé", "a+b", "@at", "#hash", "a=b", "100%"]
DATABASES = ["Sales Data", "O'Brien's", "a=b c", "ünï", "my-db.x", "postgresql://x", "#1", "50%"]
PASSWORD = "a secret of the test"  # noqa: S105


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A cluster of its own, with roles and databases of every unusual name."""
    found = Cluster.create({"shared_buffers": "16MB"})
    try:
        yield found
    finally:
        found.remove()


@functools.cache
def request() -> dict[str, Any]:
    """What `provision access` reads for these names: the roles of a plan, with a verifier each."""
    extra = [{"name": name, "kind": "read", "connection_limit": 3} for name in ROLES]
    databases = {name: ROLES[number % len(ROLES)] for number, name in enumerate(DATABASES)}
    given = {**SAMPLE, "database_extra_roles": extra, "database_extra_databases": databases}
    found = plan("prod", {**given, "database_extensions": []}).access
    verifier = secrets.scram_verifier(PASSWORD, SALT)
    roles = [
        {"name": role.name, "kind": role.kind, "verifier": verifier, "connection_limit": role.connection_limit}
        for role in found.roles
    ]
    return {
        "database": found.database, "owner": found.owner, "guard": False, "extensions": [], "roles": roles,
        "extra_databases": databases,
    }  # fmt: skip


def test_second_run_changes_nothing_and_every_role_logs_in_everywhere(server: Cluster) -> None:
    where = quoting.conninfo({"host": server.host, "port": server.port, "user": "postgres"})
    assert access.converge(where, request())
    assert access.converge(where, request()) == []
    for database in DATABASES:
        for role in ROLES:
            with connect(server.url(database, role), application="test") as session:
                assert session.execute("SELECT current_user::text, current_database()::text").fetchone() == (
                    role,
                    database,
                )


def test_access_rules_let_each_name_in_and_no_other(server: Cluster) -> None:
    access.converge(quoting.conninfo({"host": server.host, "port": server.port, "user": "postgres"}), request())
    lines = ["local all postgres trust"]
    for role, database in zip(ROLES, DATABASES, strict=False):
        rule = [{"users": [role], "databases": [database], "method": "peer"}]
        lines.append(str(hba.rules(tls=False, networks=[], extra=rule)[1]).replace("peer", "trust"))
    original = (server.data / "pg_hba.conf").read_text()
    (server.data / "pg_hba.conf").write_text("\n".join(lines) + "\n")
    try:
        server.psql("SELECT pg_reload_conf()")
        time.sleep(0.3)
        assert server.psql("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"
        for role, database in zip(ROLES, DATABASES, strict=False):
            own = quoting.conninfo({"host": server.host, "port": server.port, "user": role, "dbname": database})
            with psycopg.connect(own) as session:
                assert session.info.user == role
            other = quoting.conninfo({"host": server.host, "port": server.port, "user": role, "dbname": "minion"})
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                psycopg.connect(other)
    finally:
        (server.data / "pg_hba.conf").write_text(original)
        server.psql("SELECT pg_reload_conf()")


def test_fix_that_doctor_prints_runs_in_a_shell(server: Cluster) -> None:
    access.converge(quoting.conninfo({"host": server.host, "port": server.port, "user": "postgres"}), request())
    for database in DATABASES:
        for role in ROLES[:3]:
            command = psql(database, f"ALTER ROLE {identifier(role)} CONNECTION LIMIT 3", "SELECT current_database()")
            place = f"PGHOST={server.host} PGPORT={server.port} PGUSER=postgres {server.bin}/psql -XAtq"
            shown = command.replace("runuser -u postgres -- psql", place)
            done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout.strip()) == (0, database), done.stderr


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=63) | st.text(alphabet="aé'@ %=;#$.-_", min_size=1, max_size=63))
def test_any_accepted_name_is_kept_whole_by_the_server(server: Cluster, name: str) -> None:
    if names.problem(name):
        return
    with connect(server.url(), application="test") as session, session.transaction(force_rollback=True):
        session.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        assert session.execute("SELECT rolname::text FROM pg_roles WHERE rolname = %s", (name,)).fetchone() == (name,)
        session.execute(f"DROP ROLE {identifier(name)}".encode())


def test_pooler_starts_with_unusual_names_and_serves_those_that_it_can_name(server: Cluster, tmp_path: Path) -> None:
    access.converge(quoting.conninfo({"host": server.host, "port": server.port, "user": "postgres"}), request())
    found = request()
    given = {
        "database_extra_databases": found["extra_databases"],
        "database_extra_roles": [{"name": name, "kind": "read", "connection_limit": 3} for name in ROLES],
        "tls_enabled": False,
        "postgresql_port": server.port,
    }
    probe = {"package_versions": {"pgbouncer": _version(), "pgbackrest": "2.57.0-1"}}
    rendered = test_render.published(given, probe)
    rendered["pooler"]["server"] = server.host
    rendered["pooler"]["networks"] = ["127.0.0.1/32"]
    folder = tmp_path / "pooler"
    folder.mkdir()
    for name in ("databases.ini", "users.ini", "hba.conf"):
        text = test_render.render(test_render.template(f"pgbouncer/{name}.j2"), "prod", plan=rendered)
        (folder / name).write_text(text)
    port = free_port()
    (folder / "auth").write_text(f"{quoting.pgbouncer_auth('minion_app')} {quoting.pgbouncer_auth(PASSWORD)}\n")
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n%include {folder}/databases.ini\n[users]\n%include {folder}/users.ini\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = hba\n"
        f"auth_file = {folder}/auth\nauth_hba_file = {folder}/hba.conf\n"
    )
    assert configuration.databases(folder / "pgbouncer.ini") == ["minion", "my-db.x"]
    if os.geteuid() == 0:
        moved = server.root / "pooler"
        shutil.copytree(folder, moved, dirs_exist_ok=True)
        for path in [moved, *moved.iterdir()]:
            shutil.chown(path, "postgres", "postgres")
            if path.is_file():
                path.write_text(path.read_text().replace(str(folder), str(moved)))
        folder = moved
    with subprocess.Popen(as_server_user("/usr/sbin/pgbouncer", folder / "pgbouncer.ini"), stderr=subprocess.PIPE,
                          text=True) as pooler:  # fmt: skip
        try:
            for database in ("minion", "my-db.x"):
                _log_in(port, database)
            with pytest.raises(psycopg.OperationalError, match=r"login rejected|no such database"):
                _log_in(port, "Sales Data")
        finally:
            pooler.terminate()
            said = pooler.communicate(timeout=20)[1]
    assert not [line for line in said.splitlines() if "could not parse" in line or "syntax error" in line], said


def _log_in(port: int, database: str) -> None:
    where = quoting.conninfo(
        {"host": "127.0.0.1", "port": port, "user": "minion_app", "password": PASSWORD, "dbname": database}
    )
    until = time.monotonic() + 10
    while True:
        try:
            with psycopg.connect(where) as session:
                assert session.execute("SELECT current_database()::text").fetchone() == (database,)
                return
        except psycopg.OperationalError as error:
            if "refused" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.1)


def _version() -> str:
    shown = subprocess.run(["pgbouncer", "--version"], capture_output=True, text=True, check=True).stdout
    return shown.split()[1]


def test_statements_of_doctor_quote_the_names(server: Cluster) -> None:
    with connect(server.url("minion"), application="test") as session:
        needed = drift._Statements(session)
        needed.roles([access.Role(name="O'Brien \"x", kind="read")])
    assert needed.statements[0] == ("role O'Brien \"x", 'CREATE ROLE "O\'Brien ""x"')
