"""A dump of a hostile owner: nothing in it runs with more rights than the role of the load, and no owner gains any."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_dumps import Host, host, server

__all__ = ["host", "server"]  # fixtures

TRAP = """
CREATE FUNCTION public.attempt(statement text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN EXECUTE statement; EXCEPTION WHEN OTHERS THEN NULL; END $$;
CREATE FUNCTION public.spring(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
  PERFORM public.attempt('RESET SESSION AUTHORIZATION');
  PERFORM public.attempt('SET SESSION AUTHORIZATION postgres');
  PERFORM public.attempt('SET ROLE postgres');
  PERFORM public.attempt('RESET ROLE');
  PERFORM public.attempt($_$COPY (SELECT 1) TO PROGRAM 'touch {marker}'$_$);
  PERFORM public.attempt($_$COPY (SELECT rolpassword FROM pg_authid) TO '{marker}'$_$);
  PERFORM public.attempt('CREATE ROLE planted SUPERUSER');
  PERFORM public.attempt('GRANT postgres TO minion');
  PERFORM public.attempt('ALTER DATABASE postgres OWNER TO minion');
  PERFORM public.attempt('ALTER SYSTEM SET archive_command = ''touch {marker}''');
  RETURN $1;
END $$;
"""
PLACES = {
    "check": "CREATE TABLE t (n int CHECK (public.spring(n) > 0)); INSERT INTO t VALUES (1)",
    "domain": "CREATE DOMAIN d AS int CHECK (public.spring(VALUE) > 0); CREATE TABLE t (n d); INSERT INTO t VALUES (1)",
    "index": "CREATE TABLE t (n int); INSERT INTO t VALUES (1); CREATE INDEX ON t (public.spring(n))",
    "predicate": "CREATE TABLE t (n int); INSERT INTO t VALUES (1); CREATE INDEX ON t (n) WHERE public.spring(n) > 0",
    # The planner evaluates these in every query over the table, as the user who asks.
    "constant predicate": "CREATE TABLE t (n int); INSERT INTO t VALUES (1);"
    "CREATE INDEX ON t (n) WHERE public.spring(1) > 0",
    "constant expression": "CREATE TABLE t (n int); INSERT INTO t VALUES (1);CREATE INDEX ON t ((public.spring(1)))",
    "constant statistics": "CREATE TABLE t (n int); INSERT INTO t VALUES (1);"
    "CREATE STATISTICS s ON (public.spring(1) + n), n FROM t",
    "constant check": "CREATE TABLE t (n int CHECK (public.spring(1) > 0)); INSERT INTO t VALUES (1)",
    "constant bound": "CREATE TABLE t (n int) PARTITION BY LIST ((n + public.spring(1)));"
    "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (2); INSERT INTO t VALUES (1)",
    "constant policy": "CREATE TABLE t (n int); INSERT INTO t VALUES (1); ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
    "CREATE POLICY p ON t USING (public.spring(1) > 0)",
    "generated": "CREATE TABLE t (n int, m int GENERATED ALWAYS AS (public.spring(n)) STORED);INSERT INTO t VALUES (1)",
    "materialized": "CREATE MATERIALIZED VIEW v AS SELECT public.spring(1); CREATE TABLE t (n int);"
    "INSERT INTO t VALUES (1)",
    "partition": "CREATE TABLE t (n int) PARTITION BY LIST ((public.spring(n)));"
    "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); INSERT INTO t VALUES (1)",
    "exclusion": "CREATE TABLE t (n int, EXCLUDE USING btree ((public.spring(n)) WITH =)); INSERT INTO t VALUES (1)",
    "constraint": "CREATE TABLE t (n int); INSERT INTO t VALUES (1);"
    "ALTER TABLE t ADD CONSTRAINT c CHECK (public.spring(n) > 0) NOT VALID",
    "statistics": "CREATE TABLE t (n int); INSERT INTO t VALUES (1); CREATE STATISTICS s ON (public.spring(n)) FROM t",
    "rule": "CREATE TABLE t (n int); INSERT INTO t VALUES (1);"
    "CREATE RULE r AS ON INSERT TO t DO ALSO SELECT public.spring(1)",
    "trigger": "CREATE TABLE t (n int); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN PERFORM public.spring(1); RETURN new; END'; CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW"
    " EXECUTE FUNCTION f(); INSERT INTO t VALUES (1)",
}


@pytest.fixture
def marker() -> Iterator[Path]:
    """A file that postgres may create, and nothing has created."""
    folder = Path(tempfile.mkdtemp(prefix="provision-marker-", dir="/tmp"))
    shutil.chown(folder, "postgres", "postgres")
    yield folder / "marker"
    shutil.rmtree(folder)


def hostile(host: Host, marker: Path, statements: str) -> None:
    host.cluster.psql("ALTER SCHEMA public OWNER TO minion", "minion")
    host.cluster.psql(TRAP.replace("{marker}", str(marker)) + statements, "minion", "minion")


def roles(host: Host) -> str:
    return host.sql("SELECT string_agg(rolname || rolsuper || rolcreaterole, ' ' ORDER BY 1) FROM pg_roles")


@pytest.mark.parametrize(
    "places",
    [
        pytest.param(sorted(PLACES), id="all"),
        *(pytest.param([each], marks=pytest.mark.faults, id=each) for each in sorted(PLACES)),
    ],
)
def test_code_of_a_dump_has_no_rights_beyond_the_new_database(host: Host, marker: Path, places: list[str]) -> None:
    """All places in one dump, each in a schema of its own; `make test-faults` has each alone."""
    schemas = [(f"s{number}", PLACES[place]) for number, place in enumerate(places)]
    hostile(host, marker, "".join(f"CREATE SCHEMA {name}; SET search_path = {name}; {made};" for name, made in schemas))
    before = roles(host)
    host.run("take")
    tested = host.run("drill")
    assert tested.get("dump_test", {}).get("passed"), tested
    assert "rows" in host.run("load", "", "minion")
    assert not marker.exists()
    assert roles(host) == before
    assert host.sql("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'postgres'") == "postgres"
    owners = "SELECT DISTINCT pg_get_userbyid(relowner), count(*) FROM pg_class WHERE relname = 't' GROUP BY 1"
    assert host.sql(owners) == f"minion|{len(places)}"


def test_the_trap_is_real(host: Host, marker: Path) -> None:
    hostile(host, marker, PLACES["check"])
    host.sql("ALTER SYSTEM RESET ALL; BEGIN; INSERT INTO t VALUES (2); ROLLBACK")
    assert marker.exists()


def test_functions_of_other_owners_come_back_as_the_owner_s_and_are_named(host: Host, marker: Path) -> None:
    hostile(host, marker, PLACES["check"])
    host.sql("CREATE FUNCTION high() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text'")
    host.sql("CREATE TABLE of_reader (n int); ALTER TABLE of_reader OWNER TO reader")
    host.run("take")
    done = host.run("load", "", "minion")
    assert {"function public.high() belonged to postgres and belongs to minion now",
            "table public.of_reader belonged to reader and belongs to minion now"} <= set(done["next"])  # fmt: skip
    assert host.sql("SELECT high()") == "minion"
    assert not marker.exists()


def test_contents_of_a_superuser_s_database_do_not_become_the_superuser_s(host: Host, marker: Path) -> None:
    hostile(host, marker, "CREATE FUNCTION high() RETURNS text LANGUAGE sql SECURITY DEFINER AS"
            " 'SELECT current_user::text'")  # fmt: skip
    host.sql("ALTER DATABASE minion OWNER TO postgres")
    host.run("take")
    assert "rows" in host.run("load", "", "minion")
    assert host.sql("SELECT high()") == "minion"
    assert host.sql("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'minion'") == "postgres"


def test_an_extension_that_the_plan_does_not_name_is_refused_before_anything_changes(host: Host) -> None:
    host.sql("CREATE EXTENSION dblink; CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
    host.run("take")
    before = host.sql("SELECT string_agg(datname, ' ' ORDER BY oid) FROM pg_database")
    for words in (("load", "", "minion"), ("drill",)):
        refused = host.run(*words)
        assert refused["error"] == "the dump needs extension dblink, which only a superuser can create"
        assert refused["run"].startswith("add dblink to database_extensions")
    assert host.sql("SELECT string_agg(datname, ' ' ORDER BY oid) FROM pg_database") == before


def test_extensions_of_the_plan_are_the_superuser_s_in_their_schema(host: Host) -> None:
    host.sql('CREATE SCHEMA ext AUTHORIZATION minion; CREATE EXTENSION "uuid-ossp" SCHEMA ext')
    host.sql("CREATE TABLE t (id uuid DEFAULT ext.uuid_generate_v4()); INSERT INTO t DEFAULT VALUES")
    host.run("take")
    assert host.run("drill")["dump_test"]["passed"]
    assert host.run("load", "", "minion")["rows"] == 1
    shown = "SELECT pg_get_userbyid(extowner), extnamespace::regnamespace FROM pg_extension WHERE extname = 'uuid-ossp'"
    assert host.sql(shown) == "postgres|ext"
    assert host.sql("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'ext'") == "minion"


def test_extension_in_public_is_restored(host: Host) -> None:
    host.sql('CREATE EXTENSION "uuid-ossp" SCHEMA public')
    host.sql("CREATE TABLE t (id uuid DEFAULT uuid_generate_v4()); INSERT INTO t DEFAULT VALUES")
    host.run("take")
    assert host.run("drill")["dump_test"]["passed"]
    assert host.run("load", "", "minion")["rows"] == 1
    assert host.sql("SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'uuid-ossp'") == "public"
    assert host.sql("SELECT count(*) FROM pg_roles WHERE rolname ~ '_restoring_'") == "0"


def test_the_pooler_s_lookup_is_made_anew_by_the_superuser(host: Host) -> None:
    host.sql("CREATE ROLE minion_pooler LOGIN", "postgres")
    try:
        host.sql("CREATE SCHEMA pgbouncer; CREATE FUNCTION pgbouncer.lookup(wanted text) RETURNS TABLE(a text, b text)"
                 " LANGUAGE sql SECURITY DEFINER AS 'SELECT rolname, rolpassword FROM pg_authid';"
                 "CREATE TABLE t (n int)")  # fmt: skip
        host.run("take")
        assert "rows" in host.run("load", "", "minion")
        shown = "SELECT pg_get_userbyid(proowner), proargnames, proconfig FROM pg_proc WHERE proname = 'lookup'"
        assert host.sql(shown) == 'postgres|{wanted,username,secret}|{"search_path=pg_catalog, pg_temp"}'
        assert host.sql("SELECT has_function_privilege('minion', 'pgbouncer.lookup(text)', 'EXECUTE')") == "f"
    finally:
        host.sql("DROP DATABASE IF EXISTS minion WITH (FORCE)", "postgres")
        for name in host.sql("SELECT datname FROM pg_database WHERE datname ~ '^minion_'", "postgres").splitlines():
            host.sql(f'DROP DATABASE "{name}"', "postgres")
        host.sql("DROP ROLE minion_pooler", "postgres")
