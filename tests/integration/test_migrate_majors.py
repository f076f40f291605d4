"""`provision migrate verify --from --to`: migrations on scratch servers of two majors, and what differs between them.

The newer major is the machine's own with pgvector, the older one the one before it, which has only its own extensions.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from provision.host import scratch_server
from tests import embedded
from tests.clusters import install
from tests.integration.migrations import Done, Project, project, shared_database
from tests.until import until

__all__ = ["project", "shared_database"]  # fixtures

NEWER = max((int(path.name) for path in Path("/usr/lib/postgresql").glob("[0-9]*")), default=0)
OLDER = NEWER - 1
SINCE = {15: "regexp_count('a', 'a')", 16: "any_value(1)", 17: "random(1, 6)", 18: "uuidv7()"}
"""A function that a major brought."""
UNTIL = {15: "pg_is_in_backup()", 16: "current_setting('promote_trigger_file')",
         17: "current_setting('old_snapshot_threshold')", 18: "(SELECT wal_write FROM pg_stat_wal)"}  # fmt: skip
"""An expression that a major no longer has."""
GONE = {15: "pg_is_in_backup()", 17: "(SELECT buffers_backend FROM pg_stat_bgwriter)",
        18: "(SELECT wal_write FROM pg_stat_wal)"}  # fmt: skip
"""The same, for a view."""
ALL_KINDS = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, m mood NOT NULL DEFAULT 'good',
    note text COLLATE "C", twice int GENERATED ALWAYS AS (length(note) * 2) STORED, CONSTRAINT c CHECK (m <> 'bad'));
CREATE INDEX a_m ON a (m) WHERE m <> 'bad';
CREATE VIEW counted AS SELECT a.m, count(*) AS n FROM a GROUP BY a.m HAVING count(*) > 1;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
UPDATE a
SET m = 'bad'
-- not a comment of the dump
WHERE false;
RETURN NEW;
END $$;
CREATE TRIGGER touched BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION touch();
CREATE FUNCTION doubled(x int) RETURNS int LANGUAGE sql BEGIN ATOMIC
SELECT doubled.x * 2;
END;
GRANT SELECT ON a TO minion_readonly;
"""
NONE_LEFT = """
DROP FUNCTION doubled(int); DROP TABLE a CASCADE; DROP FUNCTION touch(); DROP TYPE mood;
"""


@pytest.fixture(scope="module")
def programs() -> Iterator[list[str]]:
    """The options that name the programs of both majors."""
    root = Path(tempfile.mkdtemp(prefix="provision-majors-", dir="/tmp"))
    root.chmod(0o755)
    with embedded.cluster(OLDER) as older:
        older.socket.chmod(0o755)
        try:
            yield [f"--programs={OLDER}={older.home}/bin", f"--programs={NEWER}={install(root)}"]
        finally:
            shutil.rmtree(root)


def call(project: Project, programs: list[str], *words: str) -> Done:
    return project.run("verify", f"--from={OLDER}", f"--to={NEWER}", *programs, *words)


def directories() -> set[Path]:
    """Return the directories of scratch servers on this machine."""
    places = (Path("/var/lib/postgresql"), Path(tempfile.gettempdir()))
    return {path for place in places if place.is_dir() for path in place.glob(f"{scratch_server.PREFIX}*")}


EARLIER = directories()


def scratches(process: str = "[0-9]*") -> set[Path]:
    """Return the scratch directories that a process holds open; by default, any process of this machine."""
    used = set()
    for link in Path("/proc").glob(f"{process}/fd/*"):
        with suppress(OSError):  # the process may end meanwhile
            used.add(link.readlink())
    return directories() & used


def left_behind() -> set[Path]:
    """Return the scratch directories that these tests left behind: those that no process holds open."""
    unused = directories() - scratches() - EARLIER
    return {path for path in unused if path.exists()}  # a parallel test may have just removed its own


def test_migrations_that_work_on_both_majors_make_equal_schemas(
    project: Project, programs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.put("1_a.up.sql", ALL_KINDS)
    project.put("1_a.down.sql", NONE_LEFT)
    # A session without the scratch server's address would reach this server.
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(project.cluster.port))
    before = project.cluster.psql("SELECT string_agg(datname, ',' ORDER BY oid) FROM pg_database")
    done = call(project, programs, "--extension=vector")
    assert done.err == ""
    older, newer, schemas = done.out.splitlines()
    assert older.startswith(f"PostgreSQL {OLDER}.")
    assert older.endswith(" (vector not installed): 3 steps up, down and up again: 0 differences")
    assert newer.startswith(f"PostgreSQL {NEWER}.")
    assert newer.endswith("): 3 steps up, down and up again: 0 differences")
    assert (done.code, schemas) == (0, f"schemas of {OLDER} and {NEWER}: equal")
    assert project.cluster.psql("SELECT string_agg(datname, ',' ORDER BY oid) FROM pg_database") == before
    assert project.made() == set()
    assert left_behind() == set()


@pytest.mark.parametrize(("expression", "fails"), [(SINCE[NEWER], OLDER), (UNTIL[NEWER], NEWER)])
def test_migration_of_one_major_is_named_with_its_place(
    project: Project, programs: list[str], expression: str, fails: int
) -> None:
    project.tables("first")
    project.put("2_b.up.sql", f"CREATE TABLE second ();\n\nSELECT {expression};\n")
    project.put("2_b.down.sql", "DROP TABLE second;")
    done = call(project, programs, "--json")
    assert done.code == 1
    values = json.loads(done.out)
    assert values["ok"] is False
    good, bad = sorted(values["majors"], key=lambda each: each["error"] is not None)
    assert (good["major"], good["steps"], good["differences"]) == (NEWER + OLDER - fails, 6, [])
    assert bad["major"] == fails
    assert bad["error"]["what"].startswith(f"{project.path}/2_b.up.sql:3:")
    assert bad["error"]["seen"].startswith(f"in statement: SELECT {expression}")
    text = call(project, programs).out
    assert f"PostgreSQL {bad['version']} (vector " in text
    assert f"  {bad['error']['what']}\n  in statement: SELECT {expression}" in text
    assert "schemas of" not in text
    assert left_behind() == set()


def test_schemas_that_differ_between_the_majors_are_shown(project: Project, programs: list[str]) -> None:
    later = f"current_setting('server_version_num')::int >= {NEWER}0000"
    project.put("1_a.up.sql", "CREATE TABLE a (id int);\n"
                f"DO $$ BEGIN IF {later} THEN ALTER TABLE a ADD COLUMN late text; END IF; END $$;")  # fmt: skip
    project.put("1_a.down.sql", "DROP TABLE a;")
    done = call(project, programs)
    assert done.code == 1
    assert f"schema of PostgreSQL {NEWER}, compared with the schema of {OLDER} moved to {NEWER}:" in done.out
    assert "+    late text" in done.out
    assert done.out.endswith(f"schemas of {OLDER} and {NEWER}: different\n")


def test_schema_that_the_newer_major_refuses_is_shown(project: Project, programs: list[str]) -> None:
    later = f"current_setting('server_version_num')::int >= {NEWER}0000"
    project.put("1_a.up.sql", f"DO $$ BEGIN IF {later} THEN CREATE VIEW v AS SELECT 1 AS seen;"
                f" ELSE CREATE VIEW v AS SELECT {GONE[NEWER]} AS seen; END IF; END $$;")  # fmt: skip
    project.put("1_a.down.sql", "DROP VIEW v;")
    done = call(project, programs)
    assert done.code == 1
    assert f"the schema of PostgreSQL {OLDER} cannot be created on {NEWER}:" in done.out
    assert "does not exist" in done.out


def test_leftovers_of_a_down_file_are_shown_for_both_majors(project: Project, programs: list[str]) -> None:
    project.put("1_a.up.sql", "CREATE TABLE a (id int); CREATE TYPE mood AS ENUM ('good');")
    project.put("1_a.down.sql", "DROP TABLE a;")
    done = call(project, programs)
    assert done.code == 1
    assert done.out.count("+CREATE TYPE public.mood AS ENUM (") == 2


def test_migrations_run_as_a_role_without_privileges(project: Project, programs: list[str]) -> None:
    project.put("1_a.up.sql", "COPY (SELECT 1) TO PROGRAM 'cat';")
    project.put("1_a.down.sql", "SELECT 1;")
    done = call(project, programs)
    assert done.code == 1
    assert done.out.count("in statement: COPY (SELECT 1) TO PROGRAM 'cat'") == 2
    assert done.out.count("role to COPY to or from an external program (SQLSTATE 42501)") == 2


def test_missing_extension_is_named_beside_the_failure(project: Project, programs: list[str]) -> None:
    project.path = Path(__file__).parents[2] / "migrations"
    done = call(project, programs)
    assert done.code == 1
    assert "(vector not installed, uuid-ossp 1.1): failed" in done.out
    assert "001_initial_schema.up.sql:41:1: extension missing" in done.out
    assert f"  install the extension: apt-get install postgresql-{OLDER}-pgvector\n" in done.out
    assert ", uuid-ossp 1.1): 6 steps up, down and up again: 0 differences" in done.out


def test_refuses_a_major_that_is_not_installed(project: Project, programs: list[str], tmp_path: Path) -> None:
    project.tables("a")
    done = project.run("verify", f"--from={OLDER}", f"--to={NEWER}", f"--programs={OLDER}={tmp_path}")
    assert done.code == 1
    assert f"PostgreSQL {OLDER} is not installed on this machine" in done.err
    assert f"apt-get install postgresql-{OLDER}" in done.err
    wrong = programs[1].replace(f"={NEWER}=", f"={OLDER}=")
    done = project.run("verify", f"--from={OLDER}", f"--to={NEWER}", wrong)
    assert done.code == 2
    assert "the programs are of another major" in done.err
    assert f"allowed: {OLDER}" in done.err


@pytest.mark.parametrize(
    "words",
    [(), ("--from=15",), ("--from=17", "--to=15"), ("--from=15", "--to=15"),
     ("--from=15", "--to=17", "--scratch-url=postgresql:///postgres")],
)  # fmt: skip
def test_refuses_servers_that_make_no_sense(project: Project, words: tuple[str, ...]) -> None:
    done = project.run("verify", *words)
    assert done.code == 2
    assert "--scratch-url URL, or --from and --to with the older major first" in done.err


def test_interrupted_run_leaves_no_server_and_no_files(project: Project, programs: list[str]) -> None:
    project.put("1_a.up.sql", "SELECT pg_sleep(600);")
    project.put("1_a.down.sql", "SELECT 1;")
    process = project.start("verify", f"--from={OLDER}", f"--to={NEWER}", *programs)
    scratch = _sleeping(process)
    pid = int((scratch / "data/postmaster.pid").read_text().split()[0])
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted by SIGTERM" in said
    assert not Path(f"/proc/{pid}").exists()
    assert left_behind() == set()


def test_what_a_killed_run_leaves_is_removed_by_the_next_one(project: Project, programs: list[str]) -> None:
    project.put("1_a.up.sql", "SELECT pg_sleep(600);")
    project.put("1_a.down.sql", "SELECT 1;")
    running, killed = (project.start("verify", f"--from={OLDER}", f"--to={NEWER}", *programs) for _ in range(2))
    used, abandoned = _sleeping(running), _sleeping(killed)
    killed.kill()
    killed.communicate()
    # Its server stops with it and removes postmaster.pid last.
    assert until(lambda: not (abandoned / "data/postmaster.pid").exists(), 20)
    for path in (used, abandoned):
        os.utime(path, (0, 0))
    project.put("1_a.up.sql", "SELECT 1;")
    assert call(project, programs).code == 0
    assert not abandoned.exists()
    assert used.exists()
    running.terminate()
    running.communicate(timeout=60)
    assert left_behind() == set()


def _sleeping(process: subprocess.Popen[str]) -> Path:
    """Wait until a command's migration is in pg_sleep; return the directory of its scratch server."""

    def seen() -> Path | None:
        assert process.poll() is None, process.communicate()
        for path in scratches(str(process.pid)):
            with suppress(psycopg.Error), psycopg.connect(scratch_server.url(path)) as session:
                asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                if session.execute(asleep).fetchone():
                    return path
        return None

    found = until(seen, 60)
    assert found, directories()
    return found
