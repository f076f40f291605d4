"""The command line: text and JSON output, exit codes, and confirmations of a guarded database."""

from __future__ import annotations

import datetime
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from provision.errors import UsageError
from provision.host.migrate import locks
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from tests.integration.migrations import NOTHING, Project, project, shared_database

__all__ = ["project", "shared_database"]  # fixtures


def test_up_prints_each_step_and_the_version(project: Project) -> None:
    project.tables("a", "b")
    done = project.run("up")
    assert re.fullmatch(
        r"applied 001_a.up.sql in \d+\.\d{3} s\napplied 002_b.up.sql in \d+\.\d{3} s\nversion 2\n", done.out
    )
    assert (done.code, done.err) == (0, "")
    assert project.run("up").out == "no change\n"
    assert re.fullmatch(r"reverted 002_b.down.sql in \d+\.\d{3} s\nversion 1\n", project.run("down", "1").out)


def test_stdout_is_json_only(project: Project) -> None:
    project.tables("a", "b")
    up = json.loads(project.run("up", "--json").out)
    assert (up["version"], up["dirty"], up["before"]) == (2, False, {"version": None, "dirty": False})
    assert [(step["version"], step["name"]) for step in up["applied"]] == [(1, "a"), (2, "b")]
    assert (up["reverted"], up["changed"], up["warnings"]) == ([], True, [])
    again = json.loads(project.run("up", "--json").out)
    assert (again["applied"], again["changed"]) == ([], False)
    down = json.loads(project.run("down", "1", "--json").out)
    assert [step["version"] for step in down["reverted"]] == [2]
    assert json.loads(project.run("version", "--json").out)["version"] == 1
    assert json.loads(project.run("force", "-1", "--json").out)["version"] is None


def test_json_of_a_failure_has_the_error_and_the_finished_steps(project: Project) -> None:
    project.tables("a")
    project.put("2_b.up.sql", "SELECT 1/0;")
    done = project.run("up", "--json")
    values = json.loads(done.out)
    assert done.code == 1
    assert values["error"]["what"].endswith("2_b.up.sql:1:1: division by zero (SQLSTATE 22012)")
    assert [step["version"] for step in values["applied"]] == [1]
    assert [warning["kind"] for warning in values["warnings"]] == ["missing half"]


def test_status_is_a_table(project: Project) -> None:
    project.tables("a", "b", "c")
    project.run("up", "2")
    done = project.run("status")
    assert done.code == 3
    head, _, names, _, *rows = done.out.splitlines()
    assert head == "database migrations: version 2, 1 pending"
    assert [cell.strip() for cell in names.split("|")] == [
        "version", "name", "state", "applied at", "by", "took", "checksum",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert [(row[0], row[1], row[2], row[-1]) for row in cells] == [
        ("1", "a", "applied", "ok"),
        ("2", "b", "applied", "ok"),
        ("3", "c", "pending", ""),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", cells[0][3])
    assert cells[0][4].startswith("minion (provision ")
    assert re.fullmatch(r"\d+\.\d{3} s", cells[0][5])


@pytest.mark.parametrize(
    ("change", "code", "state", "checksum"),
    [
        ("nothing", 0, "applied", "ok"),
        ("edit", 3, "applied", "edited"),
        ("crlf", 0, "applied", "line ends"),
        ("delete", 3, "deleted", "unknown"),
        ("dirty", 3, "dirty", None),
        ("golang-migrate", 0, "applied", "unknown"),
        ("force", 0, "forced", "ok"),
    ],
)
def test_status_shows_problems(project: Project, change: str, code: int, state: str, checksum: str) -> None:
    project.tables("a", "b")
    project.run("up")
    match change:
        case "edit":
            project.put("002_b.up.sql", "CREATE TABLE b ();")
        case "crlf":
            project.put("002_b.up.sql", "CREATE TABLE b (id int);\r\n")
        case "delete":
            (project.path / "002_b.up.sql").unlink()
        case "dirty":
            project.execute("UPDATE schema_migrations SET dirty = true")
        case "golang-migrate":
            project.execute("DROP TABLE schema_migrations_history")
        case "force":
            project.put("002_b.up.sql", "CREATE TABLE b ();")
            project.run("force", "2")
    done = project.run("status", "--json")
    values = json.loads(done.out)
    row = values["migrations"][1]
    assert (done.code, row["state"], row["checksum"]) == (code, state, checksum)
    assert values["settled"] is (code == 0)


def test_status_and_version_change_nothing(project: Project) -> None:
    project.tables("a")
    assert project.run("version").out == "none\n"
    assert project.run("status").code == 3
    assert project.run("plan").code == 3
    assert project.query_all("SELECT to_regclass('schema_migrations'), to_regclass('schema_migrations_history')") == [
        (None, None)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["up", "-1"], "No such option"),
        (["up", "many"], "'many' is not a valid integer range"),
        (["down"], "number of migrations missing"),
        (["down", "1", "--all"], "number of migrations missing"),
        (["goto"], "Missing argument 'V'"),
        (["goto", "-1"], "No such option"),
        (["force", "-2"], "-2 is not in the range -1<=x<=9223372036854775807"),
        (["up", "--lock-timeout", "soon"], "invalid duration"),
        (["up", "--database", "postgres://h/d?x-migration-table=a"], "unknown option in the database URL"),
        (["drop"], "drop destroys data and was not confirmed"),
        (["drop", "--yes-destroy", "other"], "allowed: typing the database's name, migrations"),
    ],
)
def test_usage_error_exits_2_and_changes_nothing(project: Project, words: list[str], message: str) -> None:
    project.tables("a")
    done = project.run(*words)
    assert (done.code, project.state()) == (2, NOTHING)
    assert message in done.err


@pytest.fixture
def guarded(project: Project) -> Iterator[Project]:
    """A guarded database, as `provision access` marks it."""
    project.cluster.psql(f"ALTER DATABASE {project.database} SET provision.guard = 'on'")
    project.tables("a", "b")
    project.run("up")
    yield project
    project.cluster.psql(f"ALTER DATABASE {project.database} RESET provision.guard")


@pytest.mark.parametrize("words", [("down", "1"), ("down", "--all"), ("goto", "1"), ("drop",)])
def test_guarded_database_needs_its_name_before_data_is_destroyed(guarded: Project, words: tuple[str, ...]) -> None:
    refused = guarded.run(*words)
    assert (refused.code, guarded.state(), guarded.made()) == (2, (2, False), {"a", "b"})
    assert "destroys data and was not confirmed" in refused.err
    assert f"database {guarded.database}, guarded" in refused.err
    assert f"--yes-destroy {guarded.database}" in refused.err
    assert guarded.run(*words, "--yes-destroy", "postgres").code == 2
    assert guarded.made() == {"a", "b"}
    unproved = guarded.run(*words, "--yes-destroy", guarded.database)
    assert unproved.code == 2
    assert "destroys data, but no recent restore-tested backup is known" in unproved.err
    assert "next:    ansible-playbook drill.yml -i" in unproved.err
    assert guarded.run(*words, "--yes-destroy", guarded.database, "--without-backup").code == 0
    assert "b" not in guarded.made()


@pytest.mark.parametrize(("hours", "reverted"), [(1, True), (30, False)])
def test_guarded_database_goes_down_only_after_a_recent_restore_test(
    guarded: Project, tmp_path: Path, hours: int, reverted: bool
) -> None:
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    evidence = tmp_path / "backup.json"
    evidence.write_text(json.dumps({"verified": {"when": when.isoformat(), "set": "20261123-010000F"}}))
    settings = Settings(f"{guarded.cluster.url(guarded.database, 'minion')}", guarded.path, evidence=evidence)
    if reverted:
        Runner(settings, confirmed=guarded.database).down(1)
    else:
        with pytest.raises(UsageError, match="no recent restore-tested backup is known") as refused:
            Runner(settings, confirmed=guarded.database).down(1)
        assert "the last restore test was 30 h ago" in str(refused.value)
    assert guarded.state() == ((1, False) if reverted else (2, False))


def test_url_cannot_switch_the_guard_off(guarded: Project) -> None:
    guarded.query = "&options=-c%20provision.guard=off"
    assert guarded.run("down", "1").code == 2
    assert guarded.made() == {"a", "b"}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (("SET provision.profile = 'dev'",), 2),
        (("SET provision.profile = 'prod'", "SET provision.guard = 'off'"), 0),
        (("SET provision.guard = 'off'",), 0),
        ((), 0),
    ],
)
def test_database_with_only_the_old_profile_setting_is_guarded(
    project: Project, settings: tuple[str, ...], code: int
) -> None:
    project.tables("a")
    project.run("up")
    try:
        for setting in settings:
            project.cluster.psql(f"ALTER DATABASE {project.database} {setting}")
        assert project.run("down", "1").code == code
    finally:
        project.cluster.psql(f"ALTER DATABASE {project.database} RESET ALL")


def test_guarded_database_goes_up_without_confirmation(guarded: Project) -> None:
    guarded.tables("a", "b", "c")
    assert guarded.run("up").code == 0
    assert "(guarded): version 3" in guarded.run("status").out


def on_terminal(project: Project, *words: str, typed: str = "") -> tuple[int, str]:
    """Run a command with a terminal for stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "from provision.cli import main; main()"]
    with subprocess.Popen(
        [*program, *project.arguments(words[0], *words[1:])], stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        output = b""
        try:
            while piece := os.read(ours, 4096):
                output += piece
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    return process.returncode, output.decode()


@pytest.mark.parametrize(("typed", "code"), [("migrations\n", 0), ("y\n", 2)])
def test_guarded_database_asks_for_its_name_on_a_terminal(guarded: Project, typed: str, code: int) -> None:
    ended, output = on_terminal(guarded, "down", "1", "--without-backup", typed=typed)
    assert (ended, "Type the database's name to continue" in output) == (code, True)
    assert guarded.state() == ((1, False) if code == 0 else (2, False))


def test_terminal_shows_the_running_step_and_index_progress(project: Project) -> None:
    project.put(
        "1_a.up.sql",
        "CREATE TABLE a AS SELECT g AS id, repeat('x', 2000) AS words FROM generate_series(1, 400) g;"
        "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN $1; END $$;",
    )
    project.put("2_i.up.sql", "CREATE INDEX a_slow ON a (slow(id));")
    code, output = on_terminal(project, "up")
    assert code == 0
    assert re.search(r"2_i\.up\.sql: [2-5] s, building index: scanning table [1-9]\d? %", output), output
    assert "applied 2_i.up.sql in " in output


def test_create_numbers_the_next_files(project: Project) -> None:
    first = project.run("create", "Add memory index")
    assert first.out == f"{project.path}/001_add_memory_index.up.sql\n{project.path}/001_add_memory_index.down.sql\n"
    project.put("0041_x.up.sql", "")
    assert "0042_more.up.sql" in project.run("create", "more").out
    project.put("20260102030405_x.up.sql", "")
    assert re.search(r"/20\d{12}_later\.up\.sql", project.run("create", "later").out)
    assert project.run("create", "!!").code == 2


def test_created_files_run_unchanged(project: Project) -> None:
    project.run("create", "first")
    assert project.run("up").code == 0
    assert project.run("down", "1").code == 0


def test_plan_shows_locks_of_pending_migrations(project: Project) -> None:
    project.tables("a")
    project.run("up")
    project.put(
        "2_b.up.sql",
        "-- why\nCREATE TABLE b (id int);\nALTER TABLE a\n  ADD COLUMN x uuid DEFAULT gen_random_uuid();\n"
        "ALTER TABLE b ADD COLUMN y int;\nDO $$ BEGIN END $$;\nCREATE INDEX a_id ON a (id);",
    )
    project.put("2_b.down.sql", "")
    done = project.run("plan")
    assert done.code == 3
    assert done.out.splitlines() == [
        "database migrations: version 1, 1 pending",
        "",
        "2_b.up.sql",
        "  line 2: CREATE TABLE b (id int)",
        "  line 3: ALTER TABLE a",
        "      a: ACCESS EXCLUSIVE (blocks reads and writes), REWRITES THE TABLE:"
        " gen_random_uuid() differs for every row",
        "  line 5: ALTER TABLE b ADD COLUMN y int",
        "  line 6: DO $$ BEGIN END $$",
        "      locks unknown: runs code, which may take any lock",
        "  line 7: CREATE INDEX a_id ON a (id)",
        "      a: SHARE (blocks writes): scans the whole table",
    ]
    values = json.loads(project.run("plan", "--json").out)
    assert values["parser"] is True
    assert values["pending"][0]["statements"][1]["locks"] == [
        {
            "table": "a",
            "mode": "ACCESS EXCLUSIVE",
            "blocks": "blocks reads and writes",
            "rewrites": "yes",
            "why": "gen_random_uuid() differs for every row",
        }
    ]
    assert project.state() == (1, False)


def test_plan_without_parser_reports_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.tables("a")
    monkeypatch.setattr(locks, "_parser", lambda: None)
    done = project.run("plan")
    assert done.code == 3
    assert "Locks are not shown: pglast is not installed (on the controller: pip install pglast)." in done.out
    assert "  line 1: CREATE TABLE a (id int)" in done.out


def test_plan_exits_1_if_up_would_refuse(project: Project) -> None:
    project.tables("a")
    project.put("1_b.up.sql", "")
    done = project.run("plan")
    assert done.code == 1
    assert "refused: 1_b.up.sql has the same version and direction as 001_a.up.sql" in done.out
    assert project.run("plan").code == project.run("up").code


def test_plan_without_pending_migrations_exits_0(project: Project) -> None:
    project.tables("a")
    project.run("up")
    assert project.run("plan").code == 0


def scratch(project: Project) -> str:
    return f"--scratch-url={project.cluster.url('postgres')}"


def test_verify_accepts_reversible_migrations(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (id int, v vector(3)); CREATE INDEX a_id ON a (id);")
    project.put("1_a.down.sql", "DROP TABLE a;")
    done = project.run("verify", scratch(project))
    assert (done.code, done.out) == (0, "3 steps up, down and up again: 0 differences\n")
    assert project.cluster.psql("SELECT count(*) FROM pg_database WHERE datname LIKE 'provision_verify%'") == "0"


def test_verify_shows_leftovers_of_a_down_file(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (id int); CREATE TYPE mood AS ENUM ('good');")
    project.put("1_a.down.sql", "DROP TABLE a;")
    done = project.run("verify", scratch(project))
    assert done.code == 1
    assert "after up and down, compared with before:" in done.out
    assert "+CREATE TYPE public.mood AS ENUM (" in done.out
    values = json.loads(project.run("verify", "--json", scratch(project)).out)
    assert values["differences"][0]["when"] == "after up and down, compared with before"


def test_verify_shows_a_different_second_up(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE IF NOT EXISTS a (id int);")
    project.put("1_a.down.sql", "DROP TABLE IF EXISTS a;")
    project.put("2_b.up.sql", "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'verify_mark') THEN"
                " CREATE ROLE verify_mark; CREATE TABLE b (); END IF; END $$;")  # fmt: skip
    project.put("2_b.down.sql", "DROP TABLE b;")
    try:
        done = project.run("verify", scratch(project))
    finally:
        project.cluster.psql("DROP ROLE IF EXISTS verify_mark")
    assert done.code == 1
    assert "after up, down and up, compared with after up:" in done.out
    assert "-CREATE TABLE public.b (" in done.out


def test_verify_needs_a_role_that_can_create_databases(project: Project) -> None:
    project.tables("a")
    done = project.run("verify", f"--scratch-url={project.url}")
    assert done.code == 1
    assert "cannot create a scratch database" in done.err


def test_a_file_of_20_mb_runs_in_four_times_its_size(project: Project, tmp_path: Path) -> None:
    row = b"(1, 'a row of a larger file; with -- \xc3\xa4 and more than nothing in it')"
    body = b"CREATE TABLE a (id int, words text);\nINSERT INTO a VALUES " + b",\n".join([row] * 1000) + b";\n"
    insert = body[body.index(b"INSERT") :]
    project.put("1_a.up.sql", body + insert * ((20 << 20) // len(insert)))
    project.put("2_b.up.sql", "CREATE TABLE b ();")
    small = _most_memory(project, tmp_path, "version")
    large = _most_memory(project, tmp_path, "up")
    assert project.state() == (2, False)
    assert large - small < 4 * 20 * 1024


def _most_memory(project: Project, folder: Path, command: str) -> int:
    """Run the runner and return its peak memory in KB."""
    program = [sys.executable, "-c", "from provision.cli import main; main()", *project.arguments(command)]
    with (folder / "output").open("w") as output:
        pid = os.posix_spawn(
            program[0],
            program,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), number) for number in (1, 2)],
        )
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, (folder / "output").read_text()[-2000:]
    return usage.ru_maxrss


OWN = Path(__file__).parents[2] / "migrations"


def test_project_migrations_are_reversible(project: Project) -> None:
    project.path = OWN
    done = project.run("verify", scratch(project))
    assert done.code == 0, done.out
    assert done.out.endswith("steps up, down and up again: 0 differences\n")


def test_plan_knows_every_statement_of_the_project_migrations(project: Project) -> None:
    project.path = OWN
    done = project.run("plan")
    assert done.code == 3
    assert "this statement type is not supported" not in done.out
    assert "not valid PostgreSQL" not in done.out
