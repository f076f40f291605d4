"""Refused connections: a pooler, a standby, a version table of another tool, missing privileges."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from provision import urls
from provision.cli import root
from provision.errors import UsageError
from tests import poolers
from tests.clusters import Cluster, as_server_user, free_port, run
from tests.integration.migrations import NOTHING, Project, project, shared_database
from tests.until import until

__all__ = ["project", "shared_database"]  # fixtures


@pytest.fixture(scope="module")
def pooler(cluster: Cluster) -> Iterator[int]:
    """PgBouncer in front of the cluster: any database by its name in transaction mode, `session` in session mode."""
    place = f"host={cluster.host} port={cluster.port}"
    databases = {"session": f"{place} dbname=migrations pool_mode=session", "*": place}
    settings = {"pool_mode": "transaction", "ignore_startup_parameters": "extra_float_digits"}
    with poolers.running(cluster.root, databases, {"minion": ""}, auth_type="trust", **settings) as found:
        yield found.port


@pytest.mark.parametrize("database", ["migrations", "session"])
@pytest.mark.parametrize("words", [("up",), ("down", "1"), ("goto", "1"), ("force", "1"), ("drop",)])
def test_a_pooler_is_refused(project: Project, pooler: int, database: str, words: tuple[str, ...]) -> None:
    project.tables("a")
    through = [f"--database=postgresql://minion@127.0.0.1:{pooler}/{database}?sslmode=disable"]
    done = project.run(*words, *through)
    assert (done.code, project.state()) == (1, NOTHING)
    assert "connected through a connection pooler" in done.err
    assert f"port={pooler}" in done.err
    assert "next:    use PostgreSQL's own port (5432, not 6432)" in done.err
    assert project.cluster.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"


def test_pooler_is_allowed_for_reading(project: Project, pooler: int) -> None:
    project.tables("a")
    project.run("up")
    through = f"--database=postgresql://minion@127.0.0.1:{pooler}/migrations?sslmode=disable"
    assert project.run("version", through).out == "1\n"
    assert project.run("status", through).code == 0


@pytest.mark.parametrize("host", ["socket", "tcp"])
def test_a_direct_connection_is_not_taken_for_a_pooler(project: Project, host: str) -> None:
    project.tables("a")
    words = [f"--database=host={project.cluster.host} port={project.cluster.port} user=minion dbname=migrations"]
    done = project.run("up", *(words if host == "socket" else []))
    assert done.code == 0


@pytest.fixture(scope="module")
def standby(cluster: Cluster, shared_database: str) -> Iterator[Cluster]:
    """A hot standby of the cluster that has the database."""
    assert shared_database
    root = cluster.root / "standby"
    root.mkdir()
    if os.geteuid() == 0:
        shutil.chown(root, "postgres", "postgres")
    place = ("-h", cluster.host, "-p", str(cluster.port), "-U", "postgres", "-D", root / "data")
    run(*as_server_user(cluster.bin / "pg_basebackup", *place, "-R", "-c", "fast", "--no-sync"))
    copy = replace(cluster, root=root, port=free_port(), server=None)
    with (copy.data / "postgresql.conf").open("a") as config:
        config.write(f"port = {copy.port}\nunix_socket_directories = '{root}'\n")
    copy.start()
    try:
        yield copy
    finally:
        copy.remove()


def test_a_standby_is_refused_but_can_be_read(project: Project, standby: Cluster) -> None:
    project.tables("a", "b")
    project.run("up", "1")
    there = f"--database={standby.url(project.database, 'minion')}"
    assert until(lambda: project.run("version", there).out == "1\n", 20)
    for words in (("up",), ("down", "1"), ("force", "2"), ("drop",)):
        done = project.run(*words, there)
        assert done.code == 1
        assert "connected to a standby" in done.err
        assert f"port={standby.port}" in done.err
    assert project.run("status", there).code == 3
    assert (project.state(), project.made()) == ((1, False), {"a"})


def test_read_only_transactions_are_refused(project: Project) -> None:
    project.tables("a")
    project.query = "&options=-c%20default_transaction_read_only=on"
    done = project.run("up")
    assert (done.code, project.state()) == (1, NOTHING)
    assert "transactions are read-only" in done.err


@pytest.mark.parametrize(
    "columns",
    ["version varchar(128) PRIMARY KEY", "version varchar PRIMARY KEY, dirty boolean", "id int, migration text"],
    ids=["Rails and dbmate", "text versions", "Laravel"],
)
@pytest.mark.parametrize("words", [("up",), ("status",), ("version",), ("force", "1")])
def test_table_of_another_tool_is_not_changed(project: Project, columns: str, words: tuple[str, ...]) -> None:
    project.tables("a")
    project.execute(f"CREATE TABLE schema_migrations ({columns})")
    before = project.cluster.psql(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'schema_migrations'::regclass", "migrations"
    )
    done = project.run(*words)
    assert done.code == 1
    assert '"public"."schema_migrations" belongs to another tool' in done.err
    assert "provision migrate status --table OTHER_NAME" in done.err
    after = project.cluster.psql(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'schema_migrations'::regclass", "migrations"
    )
    assert (before, project.made()) == (after, set())
    assert project.run("up", "--table", "versions").code == 0


def test_several_rows_are_refused_and_force_repairs_them(project: Project) -> None:
    project.tables("a")
    project.execute(
        "CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)",
        "INSERT INTO schema_migrations VALUES (1, false), (2, false)",
    )
    done = project.run("up")
    assert done.code == 1
    assert "has more than one row" in done.err
    assert project.run("force", "1").code == 0
    assert project.state() == (1, False)


def test_role_without_create_is_refused_with_the_grant(project: Project) -> None:
    project.tables("a")
    project.cluster.psql(
        "REVOKE CREATE ON SCHEMA public FROM minion; ALTER SCHEMA public OWNER TO postgres", "migrations"
    )
    project.cluster.psql("GRANT USAGE ON SCHEMA public TO minion", "migrations")
    done = project.run("up")
    assert (done.code, project.state()) == (1, NOTHING)
    assert 'missing: CREATE ON SCHEMA "public"' in done.err
    assert 'GRANT CREATE ON SCHEMA "public" TO "minion"' in done.err


def test_role_that_cannot_write_the_version_is_refused(project: Project) -> None:
    project.tables("a", "b")
    project.run("up", "1")
    project.cluster.psql(
        "ALTER TABLE schema_migrations OWNER TO postgres; GRANT SELECT ON schema_migrations TO minion", "migrations"
    )
    done = project.run("up")
    assert (done.code, project.state()) == (1, (1, False))
    assert 'GRANT SELECT, INSERT, DELETE ON "public"."schema_migrations" TO "minion"' in done.err
    assert project.run("version").out == "1\n"


def test_a_search_path_without_a_schema_is_refused(project: Project) -> None:
    project.tables("a")
    project.query = "&search_path=nowhere"
    done = project.run("up")
    assert done.code == 1
    assert "no schema of search_path exists" in done.err


def test_missing_schema_is_refused(project: Project) -> None:
    project.tables("a")
    done = project.run("up", "--schema", "nowhere")
    assert done.code == 1
    assert 'schema "nowhere" does not exist' in done.err


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("postgresql://minion:geheim@127.0.0.1:1/minion", "port=1"),
        ("postgresql://minion:geheim@nowhere.invalid/minion", "host=nowhere.invalid"),
    ],
)
def test_connection_error_names_the_server_but_not_the_password(project: Project, url: str, seen: str) -> None:
    project.tables("a")
    done = project.run("up", f"--database={url}")
    assert done.code == 1
    assert "cannot connect to PostgreSQL" in done.err
    assert seen in done.err
    assert "geheim" not in done.err


@pytest.mark.parametrize("command", ["migrate version", "doctor", "verify", "bench"])
def test_every_command_refuses_an_unusable_url_before_connecting(command: str) -> None:
    url = "postgresql://minion:geh@eim@127.0.0.1:1/minion"
    done = CliRunner().invoke(root, [*command.split(), "--database", url])
    assert isinstance(done.exception, UsageError)
    assert "write %40 for @" in str(done.exception)
    assert "eim" not in str(done.exception)


def test_unknown_parameter_of_the_server_is_named(project: Project) -> None:
    project.query = "&nearly_a_setting=1"
    done = project.run("version")
    assert done.code == 1
    assert 'unrecognized configuration parameter "nearly_a_setting"' in done.err
    assert "next:    remove nearly_a_setting from the URL" in done.err


def test_every_setting_of_a_session_may_be_in_the_url(project: Project) -> None:
    rows = project.query_all("SELECT name FROM pg_settings WHERE context IN ('user', 'superuser')")
    for (name,) in rows:
        assert urls.read(f"postgresql://h/d?{name}=1").url.startswith("postgresql://h/d?")


@pytest.mark.parametrize("query", ["&statement_timeout=200", "&options=-c%20statement_timeout%3D200ms"])
def test_time_outs_in_the_url_win_over_the_defaults_and_lose_to_options(project: Project, query: str) -> None:
    project.put("001_a.up.sql", "SELECT pg_sleep(1);\n")
    project.put("001_a.down.sql", "SELECT 1;\n")
    project.query = query
    done = project.run("up")
    assert done.code == 1
    assert "statement timeout" in done.err
    assert project.run("force", "-1").code == 0
    assert project.run("up", "--statement-timeout", "10").code == 0


@pytest.mark.parametrize("query", ["&lock_timeout=200", "&options=-c%20lock_timeout%3D200ms"])
def test_lock_timeout_in_the_url_wins_over_the_default(project: Project, query: str) -> None:
    project.put("001_a.up.sql", "CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS value;\n")
    project.query = query
    assert project.run("up").code == 0
    assert project.query_all("SELECT value FROM seen") == [("200ms",)]


def test_other_limits_of_a_session_in_the_url_stay(project: Project) -> None:
    project.put("001_a.up.sql", "CREATE TABLE seen AS SELECT current_setting('idle_session_timeout') AS value;\n")
    project.put("001_a.down.sql", "DROP TABLE seen;\n")
    project.query = "&idle_session_timeout=90s"
    assert project.run("up").code == 0
    assert project.query_all("SELECT value FROM seen") == [("90s",)]


def test_server_may_be_named_by_a_service_file(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = f"host={project.cluster.host}\nport={project.cluster.port}\nuser=minion\ndbname={project.database}\n"
    (tmp_path / "services").write_text(f"[minion]\n{server}")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    project.tables("a")
    for url in ("service=minion", "postgresql://?service=minion"):
        assert project.run("version", f"--database={url}").out == "none\n"


def test_environment_is_used_without_a_url(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.tables("a")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    for name, value in {
        "PGHOST": project.cluster.host,
        "PGPORT": str(project.cluster.port),
        "PGUSER": "minion",
        "PGDATABASE": project.database,
    }.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(root, ["migrate", "up", "--path", str(project.path)])
    assert (result.exit_code, project.state()) == (0, (1, False))
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    assert CliRunner().invoke(root, ["migrate", "version"]).exit_code == 1
    monkeypatch.setenv("DATABASE_URL", project.url)
    assert CliRunner().invoke(root, ["migrate", "version"]).stdout == "1\n"
