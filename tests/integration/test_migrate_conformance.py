"""What golang-migrate leaves behind, for every command and every kind of file; ours must leave the same.

The expected states were measured with the real tool and are written here by hand. Each scenario runs with ours
(`--compatible`: what we would refuse, we run as it does) and, where golang-migrate is installed, with the real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from tests.integration.migrations import ACCOUNTS, NOTHING, Project, needs_real, project, shared_database
from tests.until import until

__all__ = ["project", "shared_database"]  # fixtures

AB: dict[str, str | bytes] = {
    "1_a.up.sql": "CREATE TABLE a ();",
    "1_a.down.sql": "DROP TABLE a;",
    "2_b.up.sql": "CREATE TABLE b ();",
    "2_b.down.sql": "DROP TABLE b;",
}
ABC = AB | {"5_c.up.sql": "CREATE TABLE c ();", "5_c.down.sql": "DROP TABLE c;"}
BAD = "CREATE TABLE bad (); SELECT 1/0; CREATE TABLE worse ();"


@dataclass(frozen=True)
class Scenario:
    """Files, commands with the version after each, and the final tables."""

    name: str
    files: Mapping[str, str | bytes]
    commands: list[str]
    tables: set[str]
    query: str = ""
    links: dict[str, str] = field(default_factory=dict)


SCENARIOS = [
    Scenario("up applies all", ABC, ["up -> 5"], {"a", "b", "c"}),
    Scenario("up again changes nothing", AB, ["up -> 2", "up -> 2"], {"a", "b"}),
    Scenario("up N applies N", ABC, ["up 1 -> 1", "up 1 -> 2"], {"a", "b"}),
    Scenario("up 0 changes nothing", AB, ["up 0 -> none"], set()),
    Scenario("up N short applies what is there", AB, ["up 5 -> 2, exit 1"], {"a", "b"}),
    Scenario("down N reverts N", ABC, ["up -> 5", "down 2 -> 1"], {"a"}),
    Scenario("the last down leaves nothing", AB, ["up 1 -> 1", "down 1 -> none"], set()),
    Scenario("down all", ABC, ["up -> 5", "down -all -> none"], set()),
    Scenario("down all on nothing", AB, ["down -all -> none"], set()),
    Scenario("down N short reverts what is there", AB, ["up -> 2", "down 5 -> none, exit 1"], set()),
    Scenario("goto forward and back", ABC, ["goto 5 -> 5", "goto 2 -> 2"], {"a", "b"}),
    Scenario("goto where it is", AB, ["goto 2 -> 2", "goto 2 -> 2"], {"a", "b"}),
    Scenario("goto a version that is not there", AB, ["up -> 2", "goto 4 -> 2, exit 1"], {"a", "b"}),
    Scenario("force sets the version and runs nothing", ABC, ["force 2 -> 2"], set()),
    Scenario("force a version that is not there", AB, ["force 7 -> 7"], set()),
    Scenario("force -1", AB, ["up -> 2", "force -1 -> none"], {"a", "b"}),
    Scenario("drop", AB, ["up -> 2", "drop -f -> none", "up -> 2"], {"a", "b"}),
    Scenario("leading zeros", {"001_a.up.sql": "CREATE TABLE a ();"}, ["up -> 1", "goto 1 -> 1"], {"a"}),
    Scenario(
        "numeric order",
        {"10_b.up.sql": "CREATE TABLE b (LIKE a);", "9_a.up.sql": "CREATE TABLE a ();"},
        ["up -> 10"],
        {"a", "b"},
    ),
    Scenario(
        "version 0",
        {"0_z.up.sql": "CREATE TABLE z ();", "0_z.down.sql": "DROP TABLE z;"},
        ["up -> 0", "down 1 -> none", "up -> 0"],
        {"z"},
    ),
    Scenario("a backup copy is a migration", {"1_a.up.sql.bak": "CREATE TABLE a ();"}, ["up -> 1"], {"a"}),
    Scenario("a backup copy collides", AB | {"1_a.up.sql~": ""}, ["up -> none, exit 1"], set()),
    Scenario(
        "the same version twice",
        {"1_a.up.sql": "CREATE TABLE a ();", "001_b.up.sql": ""},
        ["up -> none, exit 1"],
        set(),
    ),
    Scenario(
        "other names are ignored",
        AB | {"readme.md": "x", "3-c.up.sql": "x", "4_d.sql": "x", "5_e.UP.sql": "x"},
        ["up -> 2"],
        {"a", "b"},
    ),
    Scenario(
        "names of up and down may differ",
        {"1_a.up.sql": "CREATE TABLE a ();", "1_undo.down.sql": "DROP TABLE a;"},
        ["up -> 1", "down 1 -> none"],
        set(),
    ),
    Scenario(
        "a missing up half is an empty step",
        {"1_a.down.sql": "DROP TABLE a;", "2_b.up.sql": "CREATE TABLE b ();"},
        ["up 1 -> 1", "up -> 2"],
        {"b"},
    ),
    Scenario(
        "a missing down half is an empty step",
        {"1_a.up.sql": "CREATE TABLE a ();"},
        ["up -> 1", "down 1 -> none"],
        {"a"},
    ),
    Scenario(
        "empty and blank files",
        {"1_a.up.sql": "", "2_b.up.sql": " \n\t\n", "3_c.up.sql": "-- nothing\n"},
        ["up -> 3"],
        set(),
    ),
    Scenario("a dangling link is a missing half", AB, ["up -> 3"], {"a", "b"}, links={"3_c.up.sql": "gone"}),
    Scenario("a failed up leaves its version dirty", AB | {"3_c.up.sql": BAD}, ["up -> 3 dirty, exit 1"], {"a", "b"}),
    Scenario(
        "a failed down leaves the version before dirty",
        AB | {"2_b.down.sql": BAD},
        ["up -> 2", "down 1 -> 1 dirty, exit 1"],
        {"a", "b"},
    ),
    Scenario(
        "a failed last down leaves none, dirty",
        AB | {"1_a.down.sql": BAD},
        ["up 1 -> 1", "down 1 -> none dirty, exit 1"],
        {"a"},
    ),
    Scenario(
        "dirty: up, down and goto are refused",
        {"1_a.up.sql": BAD},
        ["up -> 1 dirty, exit 1", "up -> 1 dirty, exit 1", "down 1 -> 1 dirty, exit 1", "goto 1 -> 1 dirty, exit 1"],
        set(),
    ),
    Scenario("force clears dirty", {"1_a.up.sql": BAD}, ["up -> 1 dirty, exit 1", "force -1 -> none"], set()),
    Scenario(
        "force clears dirty none",
        AB | {"1_a.down.sql": BAD},
        ["up 1 -> 1", "down 1 -> none dirty, exit 1", "force 1 -> 1", "up -> 2"],
        {"a", "b"},
    ),
    Scenario(
        "a file is one transaction",
        {"1_a.up.sql": "CREATE TABLE a ();\nCREATE TABLE b ();\nCREATE TABLE a ();"},
        ["up -> 1 dirty, exit 1"],
        set(),
    ),
    Scenario("a file may begin and commit", {"1_a.up.sql": "BEGIN; CREATE TABLE a (); COMMIT;"}, ["up -> 1"], {"a"}),
    Scenario(
        "what was committed before an error stays",
        {"1_a.up.sql": "BEGIN; CREATE TABLE a (); COMMIT; SELECT 1/0;"},
        ["up -> 1 dirty, exit 1"],
        {"a"},
    ),
    Scenario(
        "an index is built concurrently in a file of its own",
        {"1_a.up.sql": "CREATE TABLE a (id int);", "2_i.up.sql": "CREATE INDEX CONCURRENTLY i ON a (id);"},
        ["up -> 2"],
        {"a"},
    ),
    Scenario(
        "an index is not built concurrently beside another statement",
        {"1_a.up.sql": "CREATE TABLE a (id int); CREATE INDEX CONCURRENTLY i ON a (id);"},
        ["up -> 1 dirty, exit 1"],
        set(),
    ),
    Scenario(
        "BEGIN without COMMIT loses the work",
        {"1_a.up.sql": "BEGIN; CREATE TABLE a ();"},
        ["up -> 1 dirty, exit 1"],
        set(),
    ),
    Scenario("ROLLBACK succeeds with nothing done", {"1_a.up.sql": "CREATE TABLE a (); ROLLBACK;"}, ["up -> 1"], set()),
    Scenario("SET ROLE", {"1_a.up.sql": "SET ROLE :role; CREATE TABLE a ();"}, ["up -> 1"], {"a"}),
    Scenario("DISCARD ALL", {"1_a.up.sql": "DISCARD ALL"}, ["up -> 1"], set()),
    Scenario(
        "pg_advisory_unlock_all",
        {"1_a.up.sql": "SELECT pg_advisory_unlock_all(); CREATE TABLE a ();", "2_b.up.sql": "CREATE TABLE b ();"},
        ["up -> 2"],
        {"a", "b"},
    ),
    Scenario(
        "COPY from stdin",
        {"1_a.up.sql": "CREATE TABLE a (id int); COPY a FROM stdin;\n1\n\\.\n"},
        ["up -> 1 dirty, exit 1"],
        set(),
    ),
    Scenario("a psql command", {"1_a.up.sql": "\\i other.sql\n"}, ["up -> 1 dirty, exit 1"], set()),
    Scenario("a byte order mark", {"1_a.up.sql": b"\xef\xbb\xbfCREATE TABLE a ();"}, ["up -> 1 dirty, exit 1"], set()),
    Scenario(
        "latin-1",
        {"1_a.up.sql": b"CREATE TABLE a (); COMMENT ON TABLE a IS 'gr\xf6\xdfe';"},
        ["up -> 1 dirty, exit 1"],
        set(),
    ),
    Scenario("CRLF", {"1_a.up.sql": "CREATE TABLE a\r\n();\r\n"}, ["up -> 1"], {"a"}),
    Scenario("unicode in names", {"1_größe_表.up.sql": "CREATE TABLE a ();"}, ["up -> 1"], {"a"}),
    Scenario("an empty directory", {"readme.md": ""}, ["up -> none, exit 1"], set()),
    Scenario(
        "x-statement-timeout",
        {"1_a.up.sql": "CREATE TABLE a (); SELECT pg_sleep(5);"},
        ["up -> 1 dirty, exit 1"],
        set(),
        query="&x-statement-timeout=200",
    ),
    Scenario(
        "x-multi-statement",
        {"1_a.up.sql": "CREATE TABLE a (id int); CREATE INDEX CONCURRENTLY i ON a (id);"},
        ["up -> 1"],
        {"a"},
        query="&x-multi-statement=true",
    ),
    Scenario(
        "x-multi-statement keeps what came before an error",
        {"1_a.up.sql": "CREATE TABLE a (); SELECT 1/0;"},
        ["up -> 1 dirty, exit 1"],
        {"a"},
        query="&x-multi-statement=true",
    ),
]

AS_EACH = pytest.mark.parametrize("project", ACCOUNTS, indirect=True)
EACH = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


def play(project: Project, scenario: Scenario, *tools: str) -> None:
    """Run the commands of a scenario alternately with each tool: "ours" or "real"."""
    project.query = scenario.query
    for name, body in scenario.files.items():
        project.put(name, body.replace(":role", project.account.role) if isinstance(body, str) else body)
    for name, target in scenario.links.items():
        (project.path / name).symlink_to(target)
    for line, tool in zip(scenario.commands, cycle(tools)):
        real = tool == "real"
        call, _, expected = line.partition(" -> ")
        command, *words = call.split()
        if not real and command == "drop":
            words = ["--yes-destroy", project.database]
        done = project.real(command, *words) if real else project.run(command, *words, "--compatible")
        version, dirty = project.state()
        left = (
            f"{'none' if version == -1 else version}{' dirty' if dirty else ''}{', exit 1' if done.code == 1 else ''}"
        )
        assert left == expected, f"{line}: {done}"
        assert done.code in (0, 1)
    assert project.made() == scenario.tables


@AS_EACH
@EACH
def test_leaves_what_golang_migrate_leaves(project: Project, scenario: Scenario) -> None:
    play(project, scenario, "ours")


@needs_real
@AS_EACH
@EACH
def test_golang_migrate_itself_leaves_it(project: Project, scenario: Scenario) -> None:
    play(project, scenario, "real")


@needs_real
@AS_EACH
@pytest.mark.parametrize("first", ["ours", "real"])
@pytest.mark.parametrize(
    "scenario", [each for each in SCENARIOS if len(each.commands) > 1], ids=lambda scenario: scenario.name
)
def test_golang_migrate_takes_turns_with_ours(project: Project, scenario: Scenario, first: str) -> None:
    play(project, scenario, *(["ours", "real"] if first == "ours" else ["real", "ours"]))


@needs_real
@AS_EACH
def test_golang_migrate_and_ours_run_at_once(project: Project) -> None:
    project.execute("CREATE TABLE log (version int, at timestamptz DEFAULT clock_timestamp())")
    for number in range(1, 6):
        project.put(f"{number}_x.up.sql", f"INSERT INTO log VALUES ({number}); SELECT pg_sleep(0.1);")
    runners = [start("up") for _ in range(10) for start in (project.start, project.start_real)]
    ends = [(*runner.communicate(timeout=60), runner.returncode) for runner in runners]
    assert [code for *_, code in ends] == [0] * 20, ends
    assert project.query_all("SELECT version FROM log ORDER BY at") == [(1,), (2,), (3,), (4,), (5,)]
    assert project.state() == (5, False)


@needs_real
@AS_EACH
def test_golang_migrate_sees_what_a_killed_run_of_ours_left(project: Project) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (); SELECT pg_sleep(60);")
    process = project.start("up")
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    assert until(lambda: project.cluster.psql(asleep) == "1", 20)
    process.kill()
    process.communicate()
    assert "1 (dirty)" in project.real("version").err
    refused = project.real("up")
    assert (refused.code, "Dirty database version 1. Fix and force version." in refused.err) == (1, True), refused


@needs_real
@AS_EACH
def test_golang_migrate_and_ours_take_turns(project: Project) -> None:
    project.tables("a", "b", "c", "d")
    assert project.real("up", "1").code == 0
    assert project.run("up", "1").code == 0
    assert project.real("up", "1").code == 0
    assert project.run("up").code == 0
    assert project.state() == (4, False)
    assert project.real("down", "2").code == 0
    assert project.run("goto", "3").code == 0
    assert (project.state(), project.made()) == ((3, False), {"a", "b", "c"})


def test_a_database_in_another_schema_is_migrated_there(project: Project) -> None:
    project.tables("a")
    project.execute("CREATE SCHEMA app")
    project.query = "&search_path=app"
    assert project.run("up").code == 0
    assert project.query_all("SELECT version, dirty FROM app.schema_migrations") == [(1, False)]
    assert (project.made(), project.query_all("SELECT to_regclass('app.a')::text")) == (set(), [("app.a",)])


@pytest.mark.parametrize(
    ("query", "table"),
    [
        ("&x-migrations-table=versions", "public.versions"),
        ("&x-migrations-table=my.versions", 'public."my.versions"'),
        ("&x-migrations-table=%22other%22.%22versions%22&x-migrations-table-quoted=true", "other.versions"),
    ],
)
def test_url_selects_the_version_table(project: Project, query: str, table: str) -> None:
    project.tables("a")
    project.execute("CREATE SCHEMA other")
    project.query = query
    assert project.run("up").code == 0
    assert project.state(table) == (1, False)
    assert project.state() == NOTHING


@AS_EACH
def test_reads_the_version_of_golang_migrate(project: Project) -> None:
    project.tables("a", "b")
    project.execute(
        "CREATE TABLE schema_migrations (version bigint not null primary key, dirty boolean not null)",
        "INSERT INTO schema_migrations VALUES (1, false)",
        "CREATE TABLE a (id int)",
    )
    done = project.run("up")
    assert (done.code, project.state(), project.made()) == (0, (2, False), {"a", "b"})


@AS_EACH
@pytest.mark.parametrize("words", [("-1",), ("--", "-1")])
def test_force_to_no_version_writes_what_golang_migrate_writes(project: Project, words: tuple[str, ...]) -> None:
    project.tables("a")
    project.run("up")
    assert (project.run("force", *words).code, project.state()) == (0, NOTHING)


@AS_EACH
def test_dirty_version_is_refused_with_the_message_of_golang_migrate(project: Project) -> None:
    project.tables("a")
    project.execute(
        "CREATE TABLE schema_migrations (version bigint not null primary key, dirty boolean not null)",
        "INSERT INTO schema_migrations VALUES (1, true)",
    )
    shown = project.run("version")
    assert "1 (dirty)" in shown.out + shown.err
    for words in (["up"], ["down", "1"], ["goto", "1"]):
        assert "Dirty database version 1. Fix and force version." in project.run(*words).err
    assert project.run("force", "1").code == 0
    assert project.state() == (1, False)


def test_default_privileges_do_not_allow_other_roles_to_write_the_version(project: Project) -> None:
    project.cluster.psql("CREATE ROLE other")
    try:
        project.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, DELETE ON TABLES TO other")
        project.tables("a")
        assert project.run("up").code == 0
        for table in ("schema_migrations", "schema_migrations_history"):
            may = f"has_table_privilege('other', '{table}', k)"
            rows = project.query_all(f"SELECT {may} FROM unnest(ARRAY['SELECT', 'INSERT']) k")
            assert rows == [(True,), (False,)]
        assert project.query_all("SELECT has_table_privilege('other', 'a', 'INSERT')") == [(True,)]
    finally:
        project.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM other")
        project.cluster.psql("DROP OWNED BY other; DROP ROLE other", "migrations")
