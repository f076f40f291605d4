"""Dumps of a real server: what a restore keeps of the database, and the restore test that a dump needs to count."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from provision.database import connect_pinned
from provision.host.access import Access
from provision.host.backup import state
from tests import plans
from tests.clusters import Cluster
from tests.contract.repository import ROOT

SYSTEM = Path("/usr/lib/postgresql")
MAJOR = max((int(path.name) for path in SYSTEM.glob("[0-9]*")), default=0)
SCRIPT = """
import _strptime, json, sys
from pathlib import Path
from provision import system
folder = Path(sys.argv[1])
system.EVIDENCE = folder / "evidence"
from provision.host.backup import scratch_cluster
scratch_cluster.SCRATCH, scratch_cluster.SOCKET = folder / "scratch", folder / "scratch/socket"
from provision.errors import ProvisionError
from provision.host.backup import drill, dump, load, status
from provision.plan import load as plans
system.become()  # now: postgres may be unable to read the interpreter's modules
plan = plans.load(folder / "plan.json")
plans.PATH = folder / "plan.json"
work = {
    "take": lambda: dump.take(plan, *sys.argv[3:]),
    "load": lambda: load.load(plan, "", sys.argv[3], sys.argv[4]),
    "drill": lambda: drill.run(plan, kind="logical"),
    "status": lambda: status.look(plan),
}
try:
    print(json.dumps(work[sys.argv[2]](), default=str))
except ProvisionError as error:
    print(json.dumps({"error": error.what, "seen": error.seen, "run": error.run}))
"""


@dataclass
class Host:
    """A cluster with a plan, dumps and evidence of its own."""

    cluster: Cluster
    folder: Path

    def run(self, *words: str) -> dict[str, Any]:
        """Run a command as postgres in a process of its own; return its result or its error."""
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(self.folder), *words],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def sql(self, statements: str, database: str = "minion") -> str:
        """Run statements as the superuser."""
        return self.cluster.psql(statements, database)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    made = Cluster.create({"max_wal_size": "256MB"}, SYSTEM / str(MAJOR) / "bin")
    try:
        made.psql("CREATE ROLE minion LOGIN; CREATE ROLE reader; CREATE ROLE granter; CREATE ROLE other")
        yield made
    finally:
        made.remove()


@pytest.fixture
def host(server: Cluster) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="provision-dumps-", dir="/tmp"))
    for name in ("", "dumps", "evidence"):
        (folder / name).mkdir(exist_ok=True)
        shutil.chown(folder / name, "postgres", "postgres")
    plan = plans.sample(
        server={"major": MAJOR, "port": server.port, "socket_directory": server.host, "settings": ()},
        backup={"physical": False, "dump_directory": str(folder / "dumps"), "processes": 2},
    )
    plans.write(folder / "plan.json", plan).chmod(0o644)
    server.psql("CREATE DATABASE minion OWNER minion TEMPLATE template0")
    yield Host(server, folder)
    names = server.psql("SELECT datname FROM pg_database WHERE datname !~ '^(postgres|template[01])$'").splitlines()
    for name in names:
        server.psql(f'ALTER DATABASE "{name}" IS_TEMPLATE false')
        server.psql(f'DROP DATABASE "{name}" WITH (FORCE)')
    shutil.rmtree(folder)


STATE = r"""
CREATE SCHEMA app; CREATE SCHEMA extensions;
CREATE TABLE app.t (n int); INSERT INTO app.t VALUES (1), (2);
ALTER DATABASE minion SET search_path = app, public, extensions;
ALTER DATABASE minion SET temp_tablespaces = pg_default, "Odd "", name";
ALTER DATABASE minion SET session_preload_libraries = 'auto_explain', 'pg_trgm';
ALTER DATABASE minion SET "DateStyle" = 'ISO, DMY';
ALTER DATABASE minion SET app.text = 'it''s, = "quoted" \\ here';
ALTER DATABASE minion SET provision.guard = on;
ALTER ROLE reader IN DATABASE minion SET search_path = '';
ALTER ROLE reader IN DATABASE minion SET work_mem = '5MB';
ALTER ROLE ALL IN DATABASE minion SET unknown.setting = 'x';
ALTER DATABASE minion CONNECTION LIMIT 17;
COMMENT ON DATABASE minion IS 'it''s the original';
REVOKE CONNECT ON DATABASE minion FROM PUBLIC;
GRANT CONNECT, CREATE ON DATABASE minion TO granter WITH GRANT OPTION;
SET ROLE granter; GRANT CONNECT ON DATABASE minion TO reader; RESET ROLE;
ALTER DATABASE minion OWNER TO other;
"""
SHOWN = """
SELECT pg_get_userbyid(datdba), datconnlimit, datacl, shobj_description(oid, 'pg_database'), datcollate, datistemplate,
  (SELECT string_agg(setrole::text || setconfig::text, ' ' ORDER BY setrole) FROM pg_db_role_setting
   WHERE setdatabase = d.oid) FROM pg_database d WHERE datname = '{}'
"""


def test_a_restore_keeps_what_postgresql_stores_beside_the_contents(host: Host) -> None:
    host.sql(STATE)
    host.sql("ALTER DATABASE minion IS_TEMPLATE true")
    before = host.sql(SHOWN.format("minion"))
    host.run("take")
    host.sql("DELETE FROM app.t")
    done = host.run("load", "", "minion")
    assert done.get("rows") == 2, done
    assert host.sql(SHOWN.format("minion")) == before
    assert host.sql("SELECT count(*) FROM t") == "2"  # through its search_path
    assert "extensions" in before
    copied = host.run("load", "copy", "")
    assert copied["rows"] == 2, copied
    assert host.sql(SHOWN.format("copy")) == before


def test_a_database_that_is_gone_gets_the_state_of_the_dump(host: Host) -> None:
    host.sql(STATE)
    before = host.sql(SHOWN.format("minion"))
    host.run("take")
    host.sql("DROP DATABASE minion", "postgres")
    assert host.run("load", "", "minion")["rows"] == 2
    assert host.sql(SHOWN.format("minion")) == before


def test_a_database_of_libc_is_restored_where_template0_has_icu(host: Host) -> None:
    column = "datlocale" if int(host.sql("SHOW server_version_num")) >= state.LOCALE_SINCE else "daticulocale"
    host.run("take")
    host.sql(f"UPDATE pg_database SET datlocprovider = 'i', {column} = 'de-DE' WHERE datname = 'template0'", "postgres")
    try:
        assert host.run("load", "", "minion").get("database") == "minion"
        assert host.sql("SELECT datlocprovider FROM pg_database WHERE datname = 'minion'") == "c"
    finally:
        host.sql(
            f"UPDATE pg_database SET datlocprovider = 'c', {column} = NULL WHERE datname = 'template0'", "postgres"
        )


def test_a_restored_database_sorts_as_the_original(host: Host) -> None:
    host.sql("DROP DATABASE minion", "postgres")
    host.sql("CREATE DATABASE minion OWNER minion TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-DE'"
             " LC_COLLATE 'C' LC_CTYPE 'C.UTF-8'", "postgres")  # fmt: skip
    host.sql("CREATE TABLE t (w text)")
    host.run("take")
    assert host.run("drill")["dump_test"]["passed"]
    assert "kept" in host.run("load", "", "minion")
    shown = "SELECT datlocprovider, daticulocale, datcollate, datctype FROM pg_database WHERE datname = 'minion'"
    assert host.sql(shown) == "i|de-DE|C|C.UTF-8"


HOSTILE = {
    "check": """
        CREATE TABLE allowed (n int); INSERT INTO allowed VALUES (1);
        CREATE FUNCTION is_allowed(v int) RETURNS boolean LANGUAGE plpgsql AS
          $$ BEGIN RETURN EXISTS (SELECT FROM allowed WHERE n = v); END $$;
        CREATE TABLE guarded (n int CHECK (is_allowed(n))); INSERT INTO guarded VALUES (1);
    """,
    "sql function": """
        CREATE TABLE allowed (n int); INSERT INTO allowed VALUES (1);
        CREATE FUNCTION is_allowed(v int) RETURNS boolean LANGUAGE sql AS
          $$ SELECT EXISTS (SELECT FROM allowed WHERE n = v) $$;
        CREATE TABLE guarded (n int CHECK (is_allowed(n))); INSERT INTO guarded VALUES (1);
    """,
    "index expression": """
        CREATE TABLE zone (name text); INSERT INTO zone VALUES ('x');
        CREATE FUNCTION is_allowed(v text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
          $$ BEGIN RETURN (SELECT name FROM zone LIMIT 1) || v; END $$;
        CREATE TABLE t (v text); INSERT INTO t VALUES ('a'); CREATE INDEX ON t (is_allowed(v));
    """,
    "generated column": """
        CREATE TABLE zone (name text); INSERT INTO zone VALUES ('x');
        CREATE FUNCTION is_allowed(v text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
          $$ BEGIN RETURN (SELECT name FROM zone LIMIT 1) || v; END $$;
        CREATE TABLE t (v text, w text GENERATED ALWAYS AS (is_allowed(v)) STORED); INSERT INTO t VALUES ('a');
    """,
    "materialized view": """
        CREATE TABLE zone (name text); INSERT INTO zone VALUES ('x');
        CREATE FUNCTION is_allowed() RETURNS text LANGUAGE plpgsql AS
          $$ BEGIN RETURN (SELECT name FROM zone LIMIT 1); END $$;
        CREATE MATERIALIZED VIEW m AS SELECT is_allowed();
    """,
}


CURE = "ALTER FUNCTION public.is_allowed SET search_path = public"


def test_a_dump_that_cannot_be_restored_is_reported_before_it_is_needed(host: Host) -> None:
    host.sql(HOSTILE["check"])
    taken = host.run("take")["label"]
    seen = host.run("status")
    assert (seen["alarms"], seen["dump_drill"]["untested"]) == ([], taken)
    tested = host.run("drill")
    assert tested["error"] == "the dump could not be restored; the database is unchanged", tested
    assert CURE in tested["run"], tested
    (alarm,) = host.run("status")["alarms"]
    assert alarm.startswith(f"the restore test of dump {taken} failed: the dump could not be restored")
    assert CURE in alarm
    refused = host.run("load", "", "minion")
    assert CURE in refused["run"], refused
    host.sql(CURE)
    shutil.rmtree(host.folder / "dumps" / taken)
    taken = host.run("take")["label"]
    tested = host.run("drill")
    assert tested.get("dump_test", {}).get("dump") == taken, tested
    seen = host.run("status")
    assert (seen["alarms"], seen["dump_drill"]["untested"], seen["dump_drill"]["passed"]) == ([], "", True)
    done = host.run("load", "", "minion")
    assert done.get("kept"), done
    assert not (host.folder / "scratch").exists()


@pytest.mark.parametrize("kind", sorted(set(HOSTILE) - {"check"}))
def test_the_restore_test_names_the_function_to_change(host: Host, kind: str) -> None:
    host.sql(HOSTILE[kind])
    host.run("take")
    tested = host.run("drill")
    # The context of an inlined SQL function has no schema.
    assert re.search(r"ALTER FUNCTION (public\.)?is_allowed SET search_path = public", tested["run"]), tested


def test_a_check_that_depends_on_the_order_of_loading_is_named_with_its_cure(host: Host) -> None:
    host.sql("""
        CREATE TABLE owners (n int); INSERT INTO owners VALUES (1);
        CREATE FUNCTION known(v int) RETURNS boolean LANGUAGE sql SET search_path = public AS
          $$ SELECT EXISTS (SELECT FROM owners WHERE n = v) $$;
        CREATE TABLE a_first (n int, CONSTRAINT owned CHECK (known(n))); INSERT INTO a_first VALUES (1);
    """)
    host.run("take")
    assert "ADD CONSTRAINT owned CHECK (...) NOT VALID" in host.run("drill")["run"]
    host.sql("ALTER TABLE a_first DROP CONSTRAINT owned, ADD CONSTRAINT owned CHECK (known(n)) NOT VALID")
    shutil.rmtree(next((host.folder / "dumps").iterdir()))
    host.run("take")
    assert host.run("drill")["dump_test"]["rows"] == 2


HARMLESS = """
CREATE UNLOGGED TABLE u (n int); INSERT INTO u VALUES (1);
CREATE EXTENSION pg_trgm; CREATE TABLE words (w text); CREATE INDEX ON words USING gin (w gin_trgm_ops);
CREATE TABLE parts (n int) PARTITION BY RANGE (n); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9);
CREATE TABLE gen (a int, b int GENERATED ALWAYS AS (a * 2) STORED, c int GENERATED ALWAYS AS IDENTITY);
INSERT INTO gen (a) VALUES (1), (2);
CREATE VIEW base AS SELECT a FROM gen; CREATE VIEW above AS SELECT a FROM base;
CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM gen;
CREATE COLLATION german (provider = icu, locale = 'de-DE'); CREATE TABLE coll (w text COLLATE german PRIMARY KEY);
UPDATE pg_collation SET collversion = '1' WHERE collname = 'german';
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 FROM public.gen; END $$;
CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION watch();
ALTER DEFAULT PRIVILEGES FOR ROLE minion IN SCHEMA public GRANT SELECT ON TABLES TO reader;
SELECT lo_create(0);
"""


def test_objects_of_every_kind_pass_the_restore_test(host: Host) -> None:
    host.sql(HARMLESS)
    host.run("take")
    tested = host.run("drill")
    assert "dump_test" in tested, tested
    done = host.run("load", "", "minion")
    assert done["rows"] == 3
    assert "not restored, for only a superuser can: EVENT TRIGGER - watching postgres" in done["next"]
    assert tested["dump_test"]["left_out"] == [
        "not restored, for only a superuser can: EVENT TRIGGER - watching postgres"
    ]
    assert host.sql("SELECT count(*) FROM pg_default_acl") == "1"
    assert host.sql("SELECT collversion <> '1' FROM pg_collation WHERE collname = 'german'") == "t"


LARGE_OBJECTS = """
SELECT lo_from_bytea(4711, '\\xdeadbeef');
COMMENT ON LARGE OBJECT 4711 IS 'of the application';
GRANT SELECT ON LARGE OBJECT 4711 TO reader;
"""
MAY_CREATE = """
SELECT string_agg(r.rolname || has_function_privilege(r.oid, 'lo_create(oid)', 'EXECUTE'), ' ' ORDER BY 1)
FROM pg_roles r WHERE r.rolname IN ('minion', 'reader')
"""


def test_large_objects_come_back_and_still_only_the_owner_may_create_them(host: Host) -> None:
    with connect_pinned(host.cluster.url("minion"), application="test") as session:
        Access(session).large_objects("minion")
    host.cluster.psql(LARGE_OBJECTS, "minion", "minion")
    host.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
    host.run("take")
    assert host.run("drill")["dump_test"]["left_out"] == []
    for into in ("", "copy"):
        done = host.run("load", into, "minion")
        assert done.get("rows") == 1, done
        assert [each for each in done["next"] if "not restored" in each] == []
        database = into or "minion"
        assert host.sql(MAY_CREATE, database) == "miniontrue readerfalse"
        assert host.sql("SELECT lo_get(4711)", database) == "\\xdeadbeef"
        assert host.sql("SELECT pg_get_userbyid(lomowner), lomacl FROM pg_largeobject_metadata", database) == (
            "minion|{minion=rw/minion,reader=r/minion}"
        )
        assert host.sql("SELECT obj_description(4711, 'pg_largeobject')", database) == "of the application"
    with connect_pinned(host.cluster.url("minion"), application="test") as session:
        access = Access(session, plan=True)
        access.large_objects("minion")
    assert access.changes == []


def test_the_restore_test_needs_a_dump_and_room(host: Host) -> None:
    assert host.run("drill")["error"] == "no dump"
