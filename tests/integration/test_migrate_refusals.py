"""What golang-migrate passes over and we refuse: before anything is run, with the database untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.migrations import NOTHING, Project, project, shared_database

__all__ = ["project", "shared_database"]  # fixtures


def tables(project: Project) -> set[str]:
    rows = project.query_all("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    return {str(row[0]) for row in rows}


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("1_b.up.sql", "CREATE TABLE b ();", "duplicate migration file: 1_b.up.sql is refused"),
        ("2_b.up.sql.bak", "", "ends with .sql.bak, but golang-migrate would run it"),
        ("2-b.up.sql", "", "nearly matches a migration name, so it would silently be ignored"),
        ("2_b.UP.sql", "", "nearly matches a migration name"),
        ("2_b.down.sql", "", "2_b.up.sql is refused; nothing was run"),
        ("2_b.up.sql", b"SELECT 1;\0", "contains a NUL byte"),
        ("2_b.up.sql", b"\xef\xbb\xbfSELECT 1;", "starts with a byte order mark"),
        ("2_b.up.sql", b"SELECT '\xf6';", "is not valid UTF-8"),
        ("2_b.up.sql", "SELECT 1;\n  BEGIN;", "2_b.up.sql:2:3 is refused"),
        ("2_b.up.sql", "ROLLBACK", "contains ROLLBACK, which reverts the file"),
        ("2_b.up.sql", "SET ROLE minion", "contains a SET ROLE without RESET ROLE"),
        ("2_b.up.sql", "DISCARD ALL", "contains DISCARD ALL, which releases the migration lock"),
        ("2_b.up.sql", "\\i x.sql", "contains a psql command"),
        ("2_b.up.sql", "COPY a FROM stdin;\n", "contains COPY FROM STDIN or TO STDOUT"),
        ("18446744073709551615_b.up.sql", "", "has a version that does not fit a bigint"),
    ],
)
def test_refuses_before_anything_is_run(project: Project, name: str, body: str | bytes, message: str) -> None:
    project.tables("a")
    project.put(name, body)
    done = project.run("up")
    assert done.code == 1
    assert message in done.err
    assert "nothing was run" in done.err
    assert "next:" in done.err
    assert tables(project) == set()


def test_refuses_a_dangling_link(project: Project) -> None:
    project.tables("a")
    (project.path / "2_b.up.sql").symlink_to("gone.sql")
    done = project.run("up")
    assert (done.code, tables(project)) == (1, set())
    assert "2_b.up.sql is refused" in done.err
    assert "is a dangling symbolic link" in done.err


def test_a_link_to_a_file_is_followed(project: Project) -> None:
    project.path.mkdir()
    target = project.put("shared", "CREATE TABLE a ();")
    (project.path / "1_a.up.sql").symlink_to(target)
    assert (project.run("up").code, project.made()) == (0, {"a"})


def test_refuses_a_fifo_without_blocking(project: Project) -> None:
    import os

    project.tables("a")
    os.mkfifo(project.path / "2_b.up.sql")
    done = project.run("up")
    assert (done.code, tables(project)) == (1, set())
    assert "is not a regular file" in done.err


def edit(project: Project) -> None:
    project.put("001_a.up.sql", "CREATE TABLE a (id bigint);")


def delete(project: Project) -> None:
    (project.path / "001_a.up.sql").unlink()


def slip_in(project: Project) -> None:
    project.put("0_before.up.sql", "CREATE TABLE before ();")
    project.put("0_before.down.sql", "DROP TABLE before;")


@pytest.mark.parametrize(
    ("change", "message", "next_command"),
    [
        (edit, "001_a.up.sql is refused; nothing was run", "provision migrate force 2"),
        (delete, "no longer exists", "restore it from version control"),
        (slip_in, "is below version 2, which is already applied", "rename it to a version above 3"),
    ],
)
def test_refuses_changed_history(
    project: Project, change: Callable[[Project], None], message: str, next_command: str
) -> None:
    project.tables("a", "b")
    assert project.run("up").code == 0
    project.tables("a", "b", "c")
    change(project)
    for command in (("up",), ("down", "1"), ("goto", "3")):
        done = project.run(*command)
        assert (done.code, project.state(), project.made()) == (1, (2, False), {"a", "b"})
        assert message in done.err
        assert next_command in done.err
    warned = project.run("up", "--compatible")
    assert (warned.code, project.state()) == (0, (3, False))
    assert "warning:" in warned.err


def test_force_records_the_current_files(project: Project) -> None:
    project.tables("a")
    project.run("up")
    edit(project)
    assert project.run("up").code == 1
    assert project.run("force", "1").code == 0
    assert project.run("up").code == 0
    assert "forced" in project.run("status").out


def test_different_line_endings_are_a_warning(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.put("001_a.up.sql", "CREATE TABLE a (id int);\r\n")
    done = project.run("up")
    assert done.code == 0
    assert "warning: 001_a.up.sql differs from the applied file only in line endings" in done.err


def test_missing_down_file_is_refused_only_for_its_down(project: Project) -> None:
    project.tables("a", "b")
    (project.path / "002_b.down.sql").unlink()
    done = project.run("up")
    assert done.code == 0
    assert "warning: 2_b.down.sql is missing, so this version cannot be reverted" in done.err
    done = project.run("down", "1")
    assert (done.code, project.state()) == (1, (2, False))
    assert "2_b.down.sql is refused" in done.err


def test_migrations_of_golang_migrate_are_adopted_and_then_checked(project: Project) -> None:
    project.tables("a", "b", "c")
    project.execute(
        "CREATE TABLE schema_migrations (version bigint not null primary key, dirty boolean not null)",
        "INSERT INTO schema_migrations VALUES (2, false)",
        "CREATE TABLE a ()",
        "CREATE TABLE b ()",
    )
    done = project.run("up")
    assert done.code == 0
    assert "adopted migrations of another tool: 1 applied, 2 applied" in done.err
    rows = project.query_all("SELECT version, direction, outcome FROM schema_migrations_history ORDER BY id")
    assert rows == [(1, "up", "adopted"), (2, "up", "adopted"), (3, "up", "done")]
    edit(project)
    done = project.run("up")
    assert done.code == 1
    assert "was edited after it was applied" in done.err


def test_golang_migrate_in_between_is_followed(project: Project) -> None:
    project.tables("a", "b", "c")
    project.run("up", "2")
    project.execute("UPDATE schema_migrations SET version = 3", "CREATE TABLE c ()")  # as its `up` leaves it
    assert project.run("up").out == "no change\n"
    project.execute("UPDATE schema_migrations SET version = 1", "DROP TABLE b, c")  # as its `down 2` leaves it
    project.put("002_b.up.sql", "CREATE TABLE b2 ();")
    assert project.run("up").code == 0
    assert (project.state(), project.made()) == ((3, False), {"a", "b2", "c"})


def test_a_plain_psql_database_is_adopted_by_force(project: Project) -> None:
    project.tables("a", "b")
    project.execute("CREATE TABLE a (id int)")  # psql -f 001_a.up.sql
    assert project.run("force", "1").code == 0
    assert project.run("up").code == 0
    assert (project.state(), project.made()) == ((2, False), {"a", "b"})


@pytest.mark.parametrize("words", [("up",), ("down", "1"), ("goto", "1")])
def test_an_unreadable_directory_is_an_error(project: Project, words: tuple[str, ...]) -> None:
    done = project.run(*words)
    assert (done.code, project.state()) == (1, NOTHING)
    assert "cannot read the migrations" in done.err
    assert str(project.path) in done.err


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ("ALTER ROLE CURRENT_USER SET search_path = app", "user"),
        ("ALTER DATABASE migrations SET search_path = app", "database"),
        ("ALTER ROLE CURRENT_USER IN DATABASE migrations SET search_path = app", "database user"),
    ],
)
def test_refuses_a_first_run_if_the_version_table_is_in_another_schema(
    project: Project, change: str, source: str
) -> None:
    project.put("1_a.up.sql", f"CREATE SCHEMA app; {change};")
    project.put("1_a.down.sql", "")
    try:
        assert project.run("up").code == 0
        for command in ("up", "status"):
            done = project.run(command)
            assert done.code == 1
            assert "migrations were applied in schema public, but this session would start again in app" in done.err
            assert f"search_path is app (set by: {source})" in done.err
            assert "provision migrate status --schema public" in done.err
        assert project.run("up", "--schema", "public").out == "no change\n"
    finally:
        project.execute(
            "ALTER ROLE CURRENT_USER RESET search_path",
            "ALTER ROLE CURRENT_USER IN DATABASE migrations RESET search_path",
            "ALTER DATABASE migrations RESET search_path",
        )


def test_first_run_in_a_schema_named_by_the_url(project: Project) -> None:
    project.tables("a")
    assert project.run("up").code == 0
    project.execute("CREATE SCHEMA app")
    project.query = "&search_path=app"
    assert project.run("up").code == 0
    assert project.query_all("SELECT to_regclass('app.schema_migrations') IS NOT NULL") == [(True,)]


def test_drop_empties_only_the_named_schema(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.execute("CREATE SCHEMA app", "CREATE TABLE app.b ()")
    done = project.run("drop", "--schema", "app", "--yes-destroy", project.database)
    assert done.code == 0, done.err
    assert project.query_all("SELECT to_regclass('app.b') IS NULL, to_regclass('public.a') IS NULL") == [(True, False)]


def test_drop_names_what_it_leaves_with_statements_that_make_up_possible_again(project: Project) -> None:
    body = (
        "CREATE TYPE mood AS ENUM ('good'); CREATE DOMAIN score AS int; CREATE SEQUENCE counter;"
        " CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        " CREATE FUNCTION \"Sum\"(a int, b numeric) RETURNS int LANGUAGE sql AS 'SELECT 1';"
        " CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY, m mood, s score); CREATE VIEW v AS SELECT 1 AS one;"
    )
    project.put("1_a.up.sql", body)
    assert project.run("up").code == 0
    done = project.run("drop", "--yes-destroy", project.database)
    assert done.code == 0, done.err
    left = (
        'DROP SEQUENCE public.counter; DROP VIEW public.v; DROP FUNCTION public."Sum"(a integer, b numeric);'
        " DROP FUNCTION public.set_updated_at(); DROP DOMAIN public.score; DROP TYPE public.mood;"
    )
    assert "warning: schema public still has 6 objects besides tables" in done.err
    assert f"({left})" in done.err
    assert project.run("up").code == 1  # the dead end that the warning is about
    project.run("drop", "--yes-destroy", project.database)
    project.execute(*(f"{each};" for each in left.split("; ")))
    assert project.run("up").code == 0


def test_drop_of_the_projects_own_schema_can_be_followed_by_up(project: Project) -> None:
    files = sorted((Path(__file__).parents[2] / "migrations").glob("*.sql"))
    for file in files:
        project.put(file.name, file.read_bytes())
    project.cluster.psql('CREATE EXTENSION IF NOT EXISTS vector; CREATE EXTENSION "uuid-ossp"', project.database)
    assert project.run("up").code == 0
    done = project.run("drop", "--yes-destroy", project.database, "--json")
    (warning,) = json.loads(done.out)["warnings"]
    assert "set_updated_at()" in warning["fix"]
    project.execute(warning["fix"])
    assert project.run("up").code == 0
    assert len(project.made()) >= 9


def test_refuses_a_history_table_of_another_tool(project: Project) -> None:
    project.tables("a")
    project.execute("CREATE TABLE schema_migrations_history (installed_rank int)")
    done = project.run("up")
    assert done.code == 1
    assert '"public"."schema_migrations_history" belongs to another tool' in done.err
    assert project.query_all("SELECT to_regclass('a') IS NULL") == [(True,)]


@pytest.mark.parametrize("table", ["schema_migrations", "schema_migrations_history"])
def test_refuses_missing_write_privileges_before_a_file_runs(project: Project, table: str) -> None:
    project.tables("a")
    project.run("up")
    project.put("2_b.up.sql", "CREATE TABLE b ();")
    project.put("2_b.down.sql", "")
    project.execute(f"REVOKE INSERT ON {table} FROM minion")
    done = project.run("up")
    assert done.code == 1
    assert f'ON "public"."{table}" TO "minion"' in done.err
    assert project.query_all("SELECT to_regclass('b') IS NULL") == [(True,)]


def test_refuses_an_unwritable_history_with_a_missing_version_table(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.execute("DROP TABLE schema_migrations, a", "REVOKE UPDATE ON schema_migrations_history FROM minion")
    done = project.run("up")
    assert (done.code, project.state(), project.made()) == (1, NOTHING, set())
    assert 'GRANT SELECT, INSERT, UPDATE ON "public"."schema_migrations_history" TO "minion"' in done.err


def test_directory_with_only_invalid_names_is_reported(project: Project) -> None:
    project.put("1-a.up.sql", "")
    done = project.run("up")
    assert "1-a.up.sql is refused" in done.err
    assert "nearly matches a migration name" in done.err


@pytest.mark.parametrize("command", ["force", "goto"])
def test_refuses_versions_above_bigint(project: Project, command: str) -> None:
    project.tables("a")
    done = project.run(command, str(2**63))
    assert done.code == 2


def test_create_refuses_versions_above_the_largest(project: Project) -> None:
    project.put(f"{2**63 - 1}_a.up.sql", "")
    done = project.run("create", "more")
    assert done.code == 2
    assert "no version number is left above the last migration" in done.err


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_of_any_encoding_is_migrated(project: Project, encoding: str) -> None:
    layout = f"TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    project.cluster.psql(f"CREATE DATABASE encoded OWNER minion {layout}")
    try:
        there = replace(project, database="encoded")
        there.put("1_gr\u00f6\u00dfe \u8868.up.sql", "CREATE TABLE a ();")
        there.put("1_gr\u00f6\u00dfe \u8868.down.sql", "DROP TABLE a;")
        assert there.run("up").out.endswith("version 1\n")
        assert there.query_all("SELECT name FROM schema_migrations_history") == [("gr\\xf6\\xdfe \\u8868",)]
        assert (there.run("status").code, there.run("down", "1").code, there.state()) == (0, 0, NOTHING)
    finally:
        project.cluster.psql("DROP DATABASE encoded WITH (FORCE)")


def test_title_with_invalid_bytes_is_recorded_escaped(project: Project) -> None:
    project.put("1_\udce4\u8868.up.sql", "CREATE TABLE a ();")
    project.put("1_\udce4\u8868.down.sql", "DROP TABLE a;")
    done = project.run("up")
    assert done.code == 0, done.err
    assert project.query_all("SELECT name FROM schema_migrations_history") == [("\\udce4\u8868",)]


def test_force_refuses_a_version_without_a_file_unless_told(project: Project) -> None:
    project.tables("a", "b")
    refused = project.run("force", "7")
    assert (refused.code, project.state()) == (2, (-1, False))
    assert "no migration has the version 7" in refused.err
    assert "versions 1, 2" in refused.err
    assert "next:    provision migrate force 2; or --compatible to record 7 as golang-migrate would" in refused.err
    assert project.run("force", "7", "--compatible").code == 0
    assert project.state() == (7, False)
