"""Concurrent and killed runners: no file runs twice, no lock remains, the next run explains the state."""

from __future__ import annotations

import signal
import subprocess
import threading
import time

import psycopg
import pytest

from provision.host.migrate.ledger import lock_keys
from tests.integration.migrations import NOTHING, Project, project, shared_database
from tests.until import until

__all__ = ["project", "shared_database"]  # fixtures


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def sessions(project: Project, where: str) -> list[int]:
    """Return the PIDs of runner sessions with matching activity."""
    ours = (
        "SELECT pid FROM pg_stat_activity WHERE datname = 'migrations' AND application_name = 'provision migrate' AND "
    )
    return [int(pid) for pid in project.cluster.psql(ours + where).split()]


def no_lock_left(project: Project) -> bool:
    return project.cluster.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"


@pytest.mark.parametrize("runners", [2, 5, 20])
def test_concurrent_runners_run_every_file_once(project: Project, runners: int) -> None:
    project.execute("CREATE TABLE log (version int, at timestamptz DEFAULT clock_timestamp())")
    for number in range(1, 6):
        project.put(f"{number}_x.up.sql", f"INSERT INTO log VALUES ({number}); SELECT pg_sleep(0.1);")
    ends = [end(process) for process in [project.start("up", "--wait", "50s") for _ in range(runners)]]
    assert [code for code, _, _ in ends] == [0] * runners, ends
    assert project.query_all("SELECT version FROM log ORDER BY at") == [(1,), (2,), (3,), (4,), (5,)]
    assert sum("no change" in out for _, out, _ in ends) == runners - 1
    assert no_lock_left(project)


@pytest.mark.parametrize("key", [0, 1], ids=["command line", "library"])
def test_waits_for_golang_migrate_and_then_names_the_holder(project: Project, key: int) -> None:
    project.tables("a")
    keys = lock_keys("public", "schema_migrations", project.database)
    url = project.cluster.url(project.database, "minion", application_name="other tool")
    with psycopg.connect(url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (keys[key],))
        done = project.run("up", "--wait", "400ms")
        assert (done.code, project.state()) == (1, NOTHING)
        assert f"another session holds the migration lock of database {project.database}" in done.err
        assert f"pid {holder.info.backend_pid}, application 'other tool', user minion" in done.err
        assert f"SELECT pg_terminate_backend({holder.info.backend_pid});" in done.err
        threading.Timer(0.5, holder.close).start()
        assert project.run("up", "--wait", "20s").code == 0


def test_both_locks_are_held_while_a_file_runs_and_none_afterwards(project: Project) -> None:
    project.put(
        "1_a.up.sql",
        "CREATE TABLE seen AS SELECT objid::bigint AS key FROM pg_locks"
        " WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objsubid = 1 AND granted;",
    )
    assert project.run("up").code == 0
    keys = lock_keys("public", "schema_migrations", project.database)
    assert {row[0] for row in project.query_all("SELECT key FROM seen")} == set(keys)
    assert no_lock_left(project)


PAUSE = """
CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.version, NEW.dirty) = ({version}, {dirty}) THEN PERFORM pg_sleep({seconds}); END IF;
    RETURN NEW;
END $$
"""
POINTS = {
    "before a file": ((1, True), NOTHING, set[str]()),
    "in a file": (None, (1, True), set[str]()),
    "after a file": ((1, False), (1, True), {"a"}),
    "between the version writes": ((2, True), (1, False), {"a"}),
}


def pause_at(project: Project, point: str, seconds: float) -> None:
    """Make the server pause at a point of the run, and start with an empty version table."""
    project.tables("a", "b")
    project.execute("CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)")
    where = POINTS[point][0]
    if where is None:
        project.put("001_a.up.sql", f"CREATE TABLE a (id int);\nSELECT pg_sleep({seconds});")
        return
    project.execute(
        PAUSE.format(version=where[0], dirty=where[1], seconds=seconds),
        "CREATE TRIGGER pause BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION pause()",
    )


def go_on(project: Project, point: str) -> None:
    """Remove the pause."""
    project.execute("DROP TRIGGER IF EXISTS pause ON schema_migrations")
    if POINTS[point][0] is None:
        project.put("001_a.up.sql", "CREATE TABLE a (id int);")


def asleep(project: Project) -> list[int]:
    return sessions(project, "wait_event = 'PgSleep'")


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("how", ["SIGKILL", "connection cut"])
def test_killed_run_leaves_an_explained_state(project: Project, point: str, how: str) -> None:
    pause_at(project, point, 60)
    process = project.start("up")
    assert until(lambda: asleep(project), 20)
    if how == "SIGKILL":
        process.kill()
        end(process)
        assert until(lambda: not asleep(project), 6)  # the server checks its client connection every second
    else:
        project.cluster.psql(f"SELECT pg_terminate_backend({asleep(project)[0]})")
        code, _, err = end(process)
        assert code == 1
        in_file = POINTS[point][0] is None
        assert (
            "terminating connection due to administrator" if in_file else "lost the connection to the server"
        ) in err
        assert "Traceback" not in err
    _, state, made = POINTS[point]
    assert (project.state(), project.made()) == (state, made)
    assert until(lambda: no_lock_left(project), 5)
    go_on(project, point)
    done = project.run("up")
    if not state[1]:
        assert done.code == 0
    else:
        assert done.code == 1
        assert "Dirty database version 1. Fix and force version." in done.err
        assert "001_a" not in done.err
        assert "1_a.up.sql never finished" in done.err
        complete, undone = "provision migrate force 1", "provision migrate force -1"
        assert f"if the whole file is applied: {complete}; if nothing of it is applied: {undone}" in done.err
        assert project.run("force", "1" if made else "-1").code == 0
        assert project.run("up").code == 0
    assert (project.state(), project.made()) == ((2, False), {"a", "b"})


@pytest.mark.parametrize("point", POINTS)
def test_sigterm_leaves_a_clean_state(project: Project, point: str) -> None:
    pause_at(project, point, 1.0 if POINTS[point][0] else 60)
    process = project.start("up", "--json")
    assert until(lambda: asleep(project), 20)
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert code == 1
    assert "interrupted by SIGTERM" in err
    assert "interrupted by SIGTERM" in out
    ran = point in ("after a file", "between the version writes")
    assert (project.state(), project.made()) == (((1, False), {"a"}) if ran else (NOTHING, set())), err
    assert no_lock_left(project)
    go_on(project, point)
    assert project.run("up").code == 0
    assert (project.state(), project.made()) == ((2, False), {"a", "b"})


def test_ctrl_c_cancels_and_rolls_back(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a ();\nSELECT pg_sleep(60);")
    process = project.start("up")
    assert until(lambda: asleep(project), 20)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert code == 1
    assert "1_a.up.sql:2:1: interrupted by SIGINT" in err
    assert "rolled back: nothing of the file was kept" in err
    assert (project.state(), project.made()) == (NOTHING, set())


def test_interrupted_file_with_a_commit_stays_dirty(project: Project) -> None:
    project.put("1_a.up.sql", "BEGIN; CREATE TABLE a (); COMMIT; SELECT pg_sleep(60);")
    process = project.start("up")
    assert until(lambda: asleep(project), 20)
    process.send_signal(signal.SIGTERM)
    code, _, err = end(process)
    assert code == 1
    assert "everything before the last COMMIT was kept" in err
    assert (project.state(), project.made()) == ((1, True), {"a"})


def test_signal_ends_the_wait_for_another_runner(project: Project) -> None:
    project.tables("a")
    with psycopg.connect(project.cluster.url(project.database, "minion"), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (lock_keys("public", "schema_migrations", project.database)[0],))
        process = project.start("up")
        assert until(lambda: sessions(project, "true"), 20)
        process.send_signal(signal.SIGTERM)
        code, _, err = end(process)
    assert code == 1
    assert "interrupted by SIGTERM while waiting for the migration lock; nothing changed" in err
    assert project.state() == NOTHING


def test_runner_killed_while_waiting_leaves_nothing(project: Project) -> None:
    project.tables("a")
    with psycopg.connect(project.cluster.url(project.database, "minion"), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (lock_keys("public", "schema_migrations", project.database)[0],))
        process = project.start("up")
        assert until(lambda: sessions(project, "true"), 20)
        process.kill()
        end(process)
        assert until(lambda: not sessions(project, "true"), 20)
        assert (project.state(), project.made()) == (NOTHING, set())
    assert project.run("up").code == 0
    assert no_lock_left(project)


def test_an_index_is_built_concurrently_while_a_second_runner_waits(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a AS SELECT generate_series(1, 1000) AS id;")
    project.put("2_i.up.sql", "CREATE INDEX CONCURRENTLY a_id ON a (id);")
    project.run("up", "1")
    reader = psycopg.connect(project.cluster.url(project.database, "minion"))
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    reader.execute("SELECT count(*) FROM a")  # the index build waits for this snapshot
    first = project.start("up", "--lock-timeout", "0", "--wait", "30s")
    assert until(lambda: sessions(project, "wait_event = 'virtualxid'"), 20)
    second = project.start("up", "--wait", "30s")
    assert until(lambda: len(sessions(project, "true")) == 2, 20)
    time.sleep(1.5)  # longer than deadlock_timeout: a waiter in pg_advisory_lock() would be a detected deadlock by now
    reader.close()
    assert [end(first)[0], end(second)[0]] == [0, 0]
    assert project.state() == (2, False)
    assert project.query_all("SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_id'::regclass") == [(True,)]


def test_migration_does_not_wait_for_a_dump_that_never_sees_an_empty_version_table(project: Project) -> None:
    project.tables("a", "b")
    project.run("up", "1")
    with psycopg.connect(project.cluster.url(project.database, "minion")) as dump:  # like a pg_dump of 30 s or more
        dump.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        dump.execute("SELECT pg_export_snapshot()")
        dump.execute("LOCK TABLE schema_migrations, a IN ACCESS SHARE MODE")
        begun = time.monotonic()
        assert project.run("up").code == 0
        assert time.monotonic() - begun < 3
        assert dump.execute("SELECT version, dirty FROM schema_migrations").fetchall() == [(1, False)]
    assert project.state() == (2, False)


def test_continuous_pg_dumps_never_contain_an_empty_version_table(project: Project) -> None:
    project.tables("first")
    project.run("up")
    for number in range(2, 32):
        project.put(f"{number:03d}_x.up.sql", "SELECT pg_sleep(0.05);")
    url = project.cluster.url(project.database, "minion")
    running = project.start("up")
    versions = []
    while running.poll() is None:
        # The pg_dump of the server's version, not the default one in PATH.
        dump = subprocess.run(
            [project.cluster.bin / "pg_dump", "--data-only", "--table=schema_migrations", url],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        rows = dump.partition("FROM stdin;\n")[2].partition("\\.")[0].splitlines()
        versions.append(rows)
    assert end(running)[0] == 0
    assert len(versions) > 3
    assert all(len(rows) == 1 for rows in versions), versions
