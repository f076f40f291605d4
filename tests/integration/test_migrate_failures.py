"""Failures of a file, and the report: location, committed part, repair command."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from tests.integration.migrations import NOTHING, Project, project, shared_database
from tests.until import until

__all__ = ["project", "shared_database"]  # fixtures


def test_syntax_error_is_located(project: Project) -> None:
    body = (
        "CREATE TABLE a (id int);\nCREATE TABLE b (id int);\n"
        "-- größe 表\nCREATE TABLE c (\n    id int,,\n    x int\n);\nCREATE TABLE d ();\nCREATE TABLE e ();\n"
    )
    project.put("1_a.up.sql", body)
    project.put("1_a.down.sql", "")
    done = project.run("up")
    assert f'{project.path}/1_a.up.sql:5:12: syntax error at or near "," (SQLSTATE 42601)' in done.err
    assert "in statement: CREATE TABLE c (" in done.err
    assert "rolled back: nothing of the file was kept" in done.err
    assert "provision migrate force -1; then fix the file and: provision migrate up" in done.err
    assert (done.code, project.state(), project.made()) == (1, (1, True), set())
    again = project.run("up")
    assert "Dirty database version 1. Fix and force version." in again.err
    assert "syntax error" in again.err
    assert "next:    provision migrate force -1" in again.err


def test_error_without_position_is_located_at_its_statement(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (id int PRIMARY KEY);\n\n  INSERT INTO a\n  VALUES (1), (1);\nSELECT 1;")
    done = project.run("up")
    assert "1_a.up.sql:3:3: duplicate key value violates unique constraint" in done.err
    assert "detail: Key (id)=(1) already exists." in done.err
    assert "in statement: INSERT INTO a;" in done.err


def test_report_names_the_part_committed_before_an_error(project: Project) -> None:
    project.put("1_a.up.sql", "BEGIN;\nCREATE TABLE a ();\nCOMMIT;\nSELECT 1/0;\n")
    done = project.run("up")
    assert "1_a.up.sql:4:1: division by zero" in done.err
    assert "rolled back in part: everything before the last COMMIT was kept" in done.err
    assert "complete it by hand and provision migrate force 1, or revert it by hand and provision migrate force -1" in (
        done.err
    )
    assert (project.state(), project.made()) == ((1, True), {"a"})


def test_an_error_shows_no_password(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE ROLE new_one LOGIN PASSWORD 'geheim-123';\n")
    done = project.run("up", "--json")
    assert done.code == 1
    assert "permission denied" in done.err
    assert "geheim" not in done.err + done.out
    assert "geheim" not in str(project.query_all("SELECT * FROM schema_migrations_history"))


def test_failed_down_names_the_repair(project: Project) -> None:
    project.tables("a", "b")
    project.put("002_b.down.sql", "DROP TABLE nowhere;")
    project.run("up")
    done = project.run("down", "1")
    assert (done.code, project.state()) == (1, (1, True))
    assert "provision migrate force 2; then fix the file and: provision migrate down 1" in done.err


@pytest.mark.parametrize(
    ("body", "what", "kept"),
    [
        ("SELECT pg_advisory_unlock_all(); CREATE TABLE a ();", "released the migration lock", {"a"}),
        ("DO $$ BEGIN PERFORM pg_advisory_unlock_all(); END $$;", "released the migration lock", set()),
        ("DROP TABLE schema_migrations; CREATE TABLE a ();", 'dropped "public"."schema_migrations"', {"a"}),
        ("DROP SCHEMA public CASCADE; CREATE SCHEMA public;", 'dropped "public"."schema_migrations"', set()),
        ("UPDATE schema_migrations SET version = 7;", 'changed "public"."schema_migrations"', set()),
        ("DELETE FROM schema_migrations;", 'changed "public"."schema_migrations"', set()),
    ],
)
def test_detects_damage_that_the_server_accepted(project: Project, body: str, what: str, kept: set[str]) -> None:
    project.put("1_a.up.sql", body)
    project.put("2_b.up.sql", "CREATE TABLE b ();")
    done = project.run("up")
    assert done.code == 1
    assert f"{project.path}/1_a.up.sql: {what}" in done.err
    assert "not rolled back: the whole file was kept" in done.err
    assert (project.state(), project.made()) == ((1, True), kept)
    assert "provision migrate force 1" in done.err
    assert "Dirty database version 1" in project.run("up").err


def test_detects_a_rollback_hidden_in_a_literal(project: Project) -> None:
    # Without standard_conforming_strings the backslash escapes the quote, and the literal ends elsewhere.
    project.put("1_a.up.sql", "SET standard_conforming_strings = off;")
    project.put("2_b.up.sql", "CREATE TABLE b (); SELECT '\\'' ; ROLLBACK; SELECT ''")
    project.execute("ALTER ROLE CURRENT_USER SET standard_conforming_strings = off")
    try:
        done = project.run("up")
    finally:
        project.execute("ALTER ROLE CURRENT_USER RESET standard_conforming_strings")
    assert done.code == 1
    assert "2_b.up.sql: contains a ROLLBACK that reverted all or part of it" in done.err
    assert (project.state(), project.made()) == ((2, True), set())


def test_transaction_hidden_in_a_literal_is_rolled_back(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE b (); SELECT '\\'' ; BEGIN; CREATE TABLE c (); SELECT ''")
    project.execute("ALTER ROLE CURRENT_USER SET standard_conforming_strings = off")
    try:
        done = project.run("up")
    finally:
        project.execute("ALTER ROLE CURRENT_USER RESET standard_conforming_strings")
    assert done.code == 1
    assert "1_a.up.sql: left a transaction open" in done.err
    assert (project.state(), project.made()) == ((1, True), set())


def test_settings_and_roles_do_not_reach_the_next_file(project: Project) -> None:
    project.execute("CREATE SCHEMA other")
    project.put("1_a.up.sql", "SET search_path = other; SET work_mem = '1MB'; CREATE TABLE a ();")
    project.put("2_b.up.sql", "CREATE TABLE b AS SELECT current_setting('work_mem') AS work_mem, current_user AS me;")
    assert project.run("up").code == 0
    assert project.query_all("SELECT to_regclass('other.a')::text, to_regclass('public.b')::text") == [("other.a", "b")]
    assert project.query_all("SELECT work_mem, me FROM b") == [("4MB", "minion")]


def test_a_role_set_by_a_function_does_not_reach_the_next_file(project: Project) -> None:
    project.cluster.psql("CREATE ROLE other; GRANT other TO minion")
    try:
        project.put("1_a.up.sql", "SELECT set_config('role', 'other', false);")
        project.put("2_b.up.sql", "CREATE TABLE b AS SELECT current_user AS me;")
        assert project.run("up").code == 0
        assert project.query_all("SELECT me FROM b") == [("minion",)]
    finally:
        project.cluster.psql("DROP ROLE other")


class Blocker:
    """An application session that locks a table until it is closed."""

    def __init__(self, project: Project, statement: str) -> None:
        self.connection = psycopg.connect(project.cluster.url(project.database, "minion", application_name="web"))
        self.connection.execute(statement.encode())
        self.pid = self.connection.info.backend_pid

    def release_after(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self.connection.close)
        timer.start()
        return timer


def test_a_lock_timeout_names_the_blocker_and_leaves_the_database_clean(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.put("2_b.up.sql", "CREATE TABLE b ();\nALTER TABLE a ADD COLUMN x int;")
    blocker = Blocker(project, "SELECT * FROM a")
    begun = time.monotonic()
    done = project.run("up", "--lock-timeout", "400ms", "--retries", "1")
    assert time.monotonic() - begun < 6
    blocker.connection.close()
    assert done.code == 1
    assert "2_b.up.sql:2:1: canceling statement due to lock timeout (SQLSTATE 55P03)" in done.err
    assert f"blocked by pid {blocker.pid}, application 'web', user minion" in done.err
    assert "lock timeout, tried 2 times" in done.err
    assert (project.state(), project.made()) == ((1, False), {"a"})
    assert project.run("up").code == 0


def test_lock_timeout_is_retried_until_the_blocker_ends(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.put("2_b.up.sql", "CREATE TABLE b (); ALTER TABLE a ADD COLUMN x int;")
    timer = Blocker(project, "SELECT * FROM a").release_after(0.8)
    done = project.run("up", "--lock-timeout", "300ms")
    timer.join()
    assert (done.code, project.state(), project.made()) == (0, (2, False), {"a", "b"})
    assert "2_b.up.sql: lock timeout, blocked by pid" in done.err
    assert "rolled back, retrying" in done.err


def test_lock_timeout_after_a_commit_is_not_retried(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.put("2_b.up.sql", "BEGIN; CREATE TABLE b (); COMMIT; ALTER TABLE a ADD COLUMN x int;")
    blocker = Blocker(project, "SELECT * FROM a")
    done = project.run("up", "--lock-timeout", "300ms")
    blocker.connection.close()
    assert (done.code, project.state(), project.made()) == (1, (2, True), {"a", "b"})
    assert "everything before the last COMMIT was kept" in done.err


def test_a_statement_timeout_is_named(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a ();\nSELECT pg_sleep(9);")
    done = project.run("up", "--statement-timeout", "200ms")
    assert "1_a.up.sql:2:1: canceling statement due to statement timeout" in done.err
    assert (project.state(), project.made()) == ((1, True), set())


def test_deadlock_is_retried(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (); CREATE TABLE b ();")
    project.run("up")
    project.put("2_b.up.sql", "LOCK TABLE a; SELECT pg_sleep(0.5); LOCK TABLE b; CREATE TABLE c ();")
    other = Blocker(project, "LOCK TABLE b")
    # The application requests `a` after the migration requested `b`: the older waiter detects the deadlock.
    worker = threading.Timer(0.9, lambda: other.connection.execute("LOCK TABLE a"))
    worker.start()
    threading.Timer(2.5, other.connection.close).start()
    done = project.run("up", "--lock-timeout", "30s")
    worker.join()
    assert (done.code, project.state()) == (0, (2, False)), done
    assert "2_b.up.sql: deadlock" in done.err


def test_an_invalid_index_is_named_with_its_drop(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a AS SELECT 1 AS id FROM generate_series(1, 2);")
    project.run("up")
    project.put("2_i.up.sql", "CREATE UNIQUE INDEX CONCURRENTLY a_id ON a (id);")
    done = project.run("up")
    assert (done.code, project.state()) == (1, (2, True))
    assert "left an INVALID index public.a_id" in done.err
    assert "next:    DROP INDEX CONCURRENTLY public.a_id; provision migrate force 1; then fix the file and" in done.err
    project.run("force", "1")
    project.put("2_i.up.sql", "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS a_id ON a (id);")
    again = project.run("up")
    assert again.code == 1
    assert "2_i.up.sql: left an INVALID index public.a_id" in again.err
    assert "next:    DROP INDEX CONCURRENTLY public.a_id; provision migrate force 1; then" in again.err


def test_a_lost_connection_leaves_dirty_and_the_next_run_explains(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (); SELECT pg_terminate_backend(pg_backend_pid());")
    done = project.run("up")
    assert (done.code, project.state(), project.made()) == (1, (1, True), set())
    assert "terminating connection" in done.err
    assert "unknown: the file may have been kept in whole or in part" in done.err
    again = project.run("up")
    assert "1_a.up.sql never finished" in again.err
    assert "if the whole file is applied: provision migrate force 1;" in again.err
    assert "; if nothing of it is applied: provision migrate force -1" in again.err


def test_index_that_a_killed_run_left_half_built_is_named_with_its_drop(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (id int); CREATE TABLE b (id int);")
    project.run("up")
    project.put("2_i.up.sql", "CREATE INDEX CONCURRENTLY a_id ON a (id);")
    blocker = Blocker(project, "LOCK TABLE a IN ROW EXCLUSIVE MODE")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND pid <> "
    timer = threading.Timer(1, lambda: project.cluster.psql(f"{end} pg_backend_pid()"))
    timer.start()
    lost = project.run("up", "--lock-timeout", "30s")
    timer.join()
    blocker.connection.close()
    assert (lost.code, project.state()) == (1, (2, True)), lost
    drop = "DROP INDEX CONCURRENTLY public.a_id; then "
    again = project.run("up")
    assert "INVALID index public.a_id" in again.err
    assert f"next:    {drop}compare the schema with the file" in again.err
    assert drop in project.run("status").out
    project.execute("DROP INDEX CONCURRENTLY a_id")
    assert "INVALID" not in project.run("up").err
    project.run("force", "1")
    assert project.run("up").code == 0


def test_file_that_changes_during_the_run_is_refused(project: Project) -> None:
    project.tables("a")
    project.put("2_b.up.sql", "CREATE TABLE b ();")
    project.put("001_a.up.sql", "CREATE TABLE a (); SELECT pg_sleep(1);")
    timer = threading.Timer(0.5, lambda: project.put("2_b.up.sql", "CREATE TABLE c ();"))
    timer.start()
    done = project.run("up")
    timer.join()
    assert (done.code, project.state(), project.made()) == (1, (1, False), {"a"})
    assert "2_b.up.sql changed while migrations were running" in done.err


def test_a_large_file_runs(project: Project) -> None:
    rows = b",\n".join(b"(%d, 'a row; of -- text')" % number for number in range(100_000))
    project.put("1_a.up.sql", b"CREATE TABLE a (id int, words text);\nINSERT INTO a VALUES " + rows + b";\nSELEC 1;")
    done = project.run("up")
    assert "1_a.up.sql:100002:1: syntax error" in done.err
    assert len(done.err) < 2000
    assert (project.state(), project.made()) == ((1, True), set())


def test_nothing_applied_stays_nothing(project: Project) -> None:
    project.tables("a")
    assert project.run("down", "1").out == "no change\n"
    assert project.state() == NOTHING


def test_run_continues_without_a_second_connection(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (); SELECT pg_sleep(1.5);")
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'minion'"
    assert until(lambda: project.cluster.psql(sessions) == "0", 20)
    project.cluster.psql("ALTER ROLE minion CONNECTION LIMIT 1")
    try:
        done = project.run("up")
    finally:
        project.cluster.psql("ALTER ROLE minion CONNECTION LIMIT -1")
    assert (done.code, project.state()) == (0, (1, False)), done


@pytest.mark.parametrize(
    ("body", "kept", "state"),
    [
        ("DO $$ BEGIN CREATE TABLE b (); PERFORM 1/0; END $$", "nothing of the file was kept", set[str]()),
        (
            "DO $$ BEGIN CREATE TABLE b (); COMMIT; PERFORM 1/0; END $$",
            "unknown: the file may have been kept in whole or in part",
            {"b"},
        ),
    ],
)
def test_reports_what_a_do_block_kept(project: Project, body: str, kept: str, state: set[str]) -> None:
    project.put("1_a.up.sql", body)
    done = project.run("up")
    assert kept in done.err
    assert (project.state(), project.made()) == ((1, True), state)


def test_version_table_with_a_long_name_is_refused(project: Project) -> None:
    project.tables("a")
    done = project.run("up", "--table", "v" * 56)
    assert done.code == 2
    assert "the version table's name is too long" in done.err
    assert project.run("up", "--table", "v" * 55).code == 0


@pytest.mark.parametrize("body", ["(SELECT 1/0);", "/* oops", "'abc", ")", "@"])
def test_single_statement_file_fails_with_its_location(project: Project, body: str) -> None:
    project.put("1_a.up.sql", body)
    project.put("1_a.down.sql", "")
    done = project.run("up")
    assert (done.code, project.state()) == (1, (1, True))
    assert "1_a.up.sql:1:" in done.err
    assert "Traceback" not in done.err


def test_settings_of_a_file_do_not_affect_the_version_write(project: Project) -> None:
    project.put(
        "1_a.up.sql", "CREATE TABLE a (); SET client_encoding = 'LATIN1'; SET default_transaction_read_only = on;"
    )
    project.put("1_a.down.sql", "DROP TABLE a;")
    project.put("2_b.up.sql", "CREATE TABLE b ();")
    project.put("2_b.down.sql", "DROP TABLE b;")
    done = project.run("up")
    assert (done.code, project.state(), project.made()) == (0, (2, False), {"a", "b"}), done.err


def test_open_transaction_after_a_commit_is_reported_as_partly_kept(project: Project) -> None:
    project.put("1_a.up.sql", "BEGIN; CREATE TABLE a (); COMMIT; BEGIN; CREATE TABLE b ();")
    project.put("1_a.down.sql", "DROP TABLE a;")
    done = project.run("up", "--compatible")
    assert (done.code, project.state(), project.made()) == (1, (1, True), {"a"})
    assert "everything before the last COMMIT was kept" in done.err


COMMITS = """
CREATE PROCEDURE often() LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO runs VALUES (1); COMMIT; LOCK TABLE a; END $$
"""


def test_procedure_that_committed_is_not_retried(project: Project) -> None:
    project.query = "&x-multi-statement=true"
    project.tables("a")
    project.run("up")
    project.execute("CREATE TABLE runs (n int)", COMMITS)
    project.put("2_b.up.sql", "CALL often();\nSELECT 1;")
    project.put("2_b.down.sql", "")
    blocker = Blocker(project, "SELECT * FROM a")
    done = project.run("up", "--lock-timeout", "300ms")
    blocker.connection.close()
    assert project.query_all("SELECT count(*) FROM runs") == [(1,)]
    assert (done.code, project.state()) == (1, (2, True))
    assert "unknown: the file may have been kept in whole or in part" in done.err


def test_an_invalid_index_among_statements_sent_one_by_one_leaves_dirty(project: Project) -> None:
    project.query = "&x-multi-statement=true"
    project.tables("a")
    project.run("up")
    project.put("2_b.up.sql", "CREATE INDEX CONCURRENTLY a_id ON a (id);\nSELECT 1;")
    project.put("2_b.down.sql", "")
    blocker = Blocker(project, "LOCK TABLE a IN ROW EXCLUSIVE MODE")
    done = project.run("up", "--lock-timeout", "300ms", "--retries", "0")
    blocker.connection.close()
    assert (done.code, project.state()) == (1, (2, True))
    assert "left an INVALID index public.a_id" in done.err


def test_invalid_index_of_another_schema_is_not_reported(project: Project) -> None:
    project.execute(
        "CREATE SCHEMA other", "CREATE TABLE other.a AS SELECT 1 AS id UNION ALL SELECT 1", "CREATE TABLE a (id int)"
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        project.execute("CREATE UNIQUE INDEX CONCURRENTLY a_id ON other.a (id)")
    project.put("1_a.up.sql", "CREATE UNIQUE INDEX CONCURRENTLY a_id ON a (id);")
    done = project.run("up")
    assert (done.code, project.state()) == (0, (1, False)), done.err


def test_older_invalid_index_of_the_same_table_is_not_reported(project: Project) -> None:
    project.execute("CREATE TABLE a AS SELECT 1 AS id UNION ALL SELECT 1")
    with pytest.raises(psycopg.errors.UniqueViolation):
        project.execute("CREATE UNIQUE INDEX CONCURRENTLY older ON a (id)")
    project.put("1_a.up.sql", "CREATE INDEX CONCURRENTLY a_id ON a (id);")
    project.put("1_a.down.sql", "DROP INDEX a_id;")
    done = project.run("up")
    assert (done.code, project.state()) == (0, (1, False)), done.err
    project.put("2_b.up.sql", "CREATE UNIQUE INDEX CONCURRENTLY ON a (id);")
    project.put("2_b.down.sql", "SELECT 1;")
    failed = project.run("up")
    assert (failed.code, project.state()) == (1, (2, True))
    assert "left an INVALID index public.a_id_idx" in failed.err
    assert "public.older" not in failed.err


def test_file_that_drops_the_history_is_detected(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.put("2_b.up.sql", "DROP TABLE schema_migrations_history;")
    project.put("2_b.down.sql", "")
    done = project.run("up")
    assert (done.code, project.state()) == (1, (2, True))
    assert '2_b.up.sql: dropped "public"."schema_migrations_history"' in done.err


def test_long_messages_are_truncated(project: Project) -> None:
    project.put("1_a.up.sql", f"SELECT '{'x' * 160_000}'::int;")
    done = project.run("up")
    assert "(160" in done.err
    assert len(done.err) < 3000


@pytest.mark.parametrize(
    "body",
    [
        "CREATE ROLE new_one LOGIN PASSWORD E'ge\\'heim-123';",
        "CREATE ROLE new_one LOGIN PASSWORD $x$geheim-123$x$;",
        "DO $$ BEGIN EXECUTE 'ALTER ROLE nobody PASSWORD ''geheim-123'''; END $$;",
        "ALTER ROLE nobody PASSWORD 'a' 'geheim-123' x;",
        'ALTER ROLE nobody PASSWORD "geheim-123";',
        "SELECT set_config('app.api_key', 'geheim-123', false), 1/0;",
        "SELECT connect_to('postgresql://user:geheim-123@host/database');",
        "CREATE SUBSCRIPTION s CONNECTION 'host=x password=geheim-123' PUBLICATION p;",
    ],
)
def test_no_form_of_a_password_is_shown(project: Project, body: str) -> None:
    project.put("1_a.up.sql", body)
    done = project.run("up", "--json")
    assert done.code == 1
    assert "heim-123" not in done.err + done.out
    assert "heim-123" not in str(project.query_all("SELECT * FROM schema_migrations_history"))


def test_repair_after_a_clean_down_can_be_typed(project: Project) -> None:
    project.tables("a")
    project.run("up")
    blocker = Blocker(project, "SELECT * FROM a")
    done = project.run("down", "1", "--lock-timeout", "200ms", "--retries", "0")
    blocker.connection.close()
    assert (done.code, project.state()) == (1, (1, False))
    assert "next:    provision migrate down 1" in done.err


def test_statement_with_an_unseen_character_names_it(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE\u00a0TABLE a ();")
    project.put("1_a.down.sql", "")
    done = project.run("up")
    assert done.code == 1
    assert "the statement contains U+00A0 NO-BREAK SPACE" in done.err


def test_statement_that_must_stand_alone_is_refused_before_anything_runs(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (id int);\nCREATE INDEX CONCURRENTLY ON a (id);")
    project.put("1_a.down.sql", "DROP TABLE a;")
    done = project.run("up")
    assert (done.code, project.state(), project.made()) == (1, NOTHING, set())
    assert "1_a.up.sql:2:1 is refused; nothing was run" in done.err
    assert "allowed: move it to a file of its own" in done.err
    project.query = "&x-multi-statement=true"
    assert project.run("up").code == 0
