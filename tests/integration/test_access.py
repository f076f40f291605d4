"""Roles and grants on a real server: created, unchanged by a second call, repaired after drift, and effective."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from provision.checks.doctor import look_from_afar
from provision.database import guarded
from provision.errors import DatabaseError, UsageError
from provision.host import lookup
from provision.host.access import Access, converge
from provision.plan.secrets import new_password, new_salt, scram_verifier
from tests.clusters import Cluster

NAMES = ("keeper", "keeper_app", "keeper_readonly", "keeper_backup", "keeper_monitor", "keeper_pooler", "gone")


def wanted(**changed: Any) -> dict[str, Any]:
    timeouts = {"statement_timeout": "30s", "lock_timeout": "5s"}
    return {
        "database": "access",
        "owner": "keeper",
        "guard": True,
        "extensions": ["vector", "uuid-ossp"],
        "roles": [
            {"name": "keeper", "kind": "owner", "connection_limit": 20},
            {"name": "keeper_app", "kind": "write", "connection_limit": 60, "settings": timeouts},
            {"name": "keeper_readonly", "kind": "read", "connection_limit": 10, "settings": timeouts},
            {"name": "keeper_backup", "kind": "backup", "connection_limit": 8},
            {"name": "keeper_monitor", "kind": "monitor", "connection_limit": 8},
            {"name": "keeper_pooler", "kind": "pooler", "connection_limit": 8},
        ],
        **changed,
    }


@pytest.fixture
def server(cluster: Cluster) -> Iterator[str]:
    yield conninfo(cluster)
    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS access WITH (FORCE)")
        connection.execute("DROP DATABASE IF EXISTS second WITH (FORCE)")
        for name in NAMES:
            connection.execute(f"DROP ROLE IF EXISTS {name}".encode())


def conninfo(cluster: Cluster) -> str:
    parameters = psycopg.conninfo.conninfo_to_dict(cluster.url("postgres"))
    return psycopg.conninfo.make_conninfo(**{key: str(value) for key, value in parameters.items() if key != "dbname"})


def run(cluster: Cluster, **changed: Any) -> list[str]:
    return converge(conninfo(cluster), wanted(**changed))


def ask(cluster: Cluster, role: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(cluster.url("access", role), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def refused(cluster: Cluster, role: str, statement: str) -> bool:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ask(cluster, role, statement)
    return True


def test_a_second_call_changes_nothing(cluster: Cluster, server: str) -> None:
    del server
    first = run(cluster)
    assert "role keeper_app" in first
    assert "extension vector" in first
    assert run(cluster) == []


def test_plan_lists_changes_without_making_them(cluster: Cluster, server: str) -> None:
    del server
    planned = converge(conninfo(cluster), wanted(), plan=True)
    assert "database access" in planned
    assert cluster.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'keeper%'") == "0"
    run(cluster)
    ask(cluster, "keeper", "CREATE TABLE t (id int)")
    cluster.psql("REVOKE USAGE ON SCHEMA public FROM keeper_app", "access")
    for _ in range(2):
        assert converge(conninfo(cluster), wanted(), plan=True) == ["schema public: GRANT USAGE TO keeper_app"]


def test_each_role_has_the_least_privileges(cluster: Cluster, server: str) -> None:
    del server
    run(cluster)
    ask(cluster, "keeper", "CREATE TABLE t (id serial PRIMARY KEY, n int)")
    ask(cluster, "keeper", "CREATE TABLE schema_migrations (version bigint, dirty boolean)")
    assert run(cluster) == [
        "table schema_migrations: REVOKE DELETE, INSERT, UPDATE FROM keeper_app",
    ]
    ask(cluster, "keeper_app", "INSERT INTO t (n) VALUES (1)")
    assert ask(cluster, "keeper_readonly", "SELECT n FROM t") == [(1,)]
    assert ask(cluster, "keeper_backup", "SELECT n FROM t") == [(1,)]
    assert ask(cluster, "keeper_monitor", "SELECT count(*) > 0 FROM pg_stat_activity WHERE query <> ''") == [(True,)]
    for role, statement in (
        ("keeper_readonly", "INSERT INTO t (n) VALUES (2)"),
        ("keeper_readonly", "SELECT nextval('t_id_seq')"),
        ("keeper_app", "CREATE TABLE mine ()"),
        ("keeper_app", "DELETE FROM schema_migrations"),
        ("keeper_app", "DROP TABLE t"),
        ("keeper_app", "TRUNCATE t"),
        ("keeper_backup", "DELETE FROM t"),
        ("keeper_monitor", "SELECT * FROM t"),
        ("keeper_pooler", "SELECT * FROM t"),
        ("keeper_app", "COPY t TO PROGRAM 'true'"),
    ):
        assert refused(cluster, role, statement), (role, statement)
    assert ask(cluster, "keeper_app", "SHOW statement_timeout") == [("30s",)]


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        ("GRANT DELETE ON t TO keeper_readonly", "table t: REVOKE DELETE FROM keeper_readonly"),
        ("REVOKE INSERT ON t FROM keeper_app", "table t: GRANT INSERT TO keeper_app"),
        ("REVOKE INSERT, UPDATE ON t FROM keeper", "table t: GRANT INSERT, UPDATE TO keeper"),
        ("REVOKE CREATE ON SCHEMA public FROM keeper", "schema public: GRANT CREATE TO keeper"),
        ("REVOKE ALL ON DATABASE access FROM keeper", "database access: GRANT CONNECT, CREATE, TEMPORARY TO keeper"),
        ("GRANT SELECT ON t TO PUBLIC", "table t: REVOKE SELECT FROM PUBLIC"),
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "schema public: REVOKE CREATE FROM PUBLIC"),
        ("GRANT CONNECT ON DATABASE access TO PUBLIC", "database access: REVOKE CONNECT FROM PUBLIC"),
        ("ALTER ROLE keeper_app SUPERUSER", "role keeper_app: LOGIN NOSUPERUSER NOCREATEROLE"),
        ("ALTER ROLE keeper_app CONNECTION LIMIT 1", "role keeper_app: connection limit 1 -> 60"),
        ("ALTER ROLE keeper_app SET work_mem = '1GB'", "role keeper_app: work_mem reset"),
        ("ALTER ROLE keeper_app RESET lock_timeout", "role keeper_app: lock_timeout = 5s"),
        ("ALTER ROLE keeper_app VALID UNTIL '2020-01-01'", "role keeper_app: valid until infinity"),
        ("GRANT pg_read_all_data TO keeper_app", "role keeper_app: no longer member of pg_read_all_data"),
        ("REVOKE pg_monitor FROM keeper_monitor", "role keeper_monitor: member of pg_monitor"),
        ("ALTER DATABASE access RESET provision.guard", "database access: provision.guard = on"),
        ("ALTER DATABASE access SET provision.guard = 'off'", "database access: provision.guard = on"),
        ("ALTER DATABASE access SET provision.profile = 'prod'", "database access: provision.profile reset"),
        ("DROP EXTENSION vector", "extension vector"),
        (
            "GRANT EXECUTE ON FUNCTION pgbouncer.lookup(text) TO keeper_app",
            "function pgbouncer.lookup: REVOKE EXECUTE FROM keeper_app",
        ),
        (
            "GRANT EXECUTE ON FUNCTION pgbouncer.lookup(text) TO PUBLIC",
            "function pgbouncer.lookup: REVOKE EXECUTE FROM PUBLIC",
        ),
        ("GRANT CREATE ON SCHEMA pgbouncer TO keeper_pooler", "schema pgbouncer: REVOKE CREATE FROM keeper_pooler"),
        ("REVOKE USAGE ON SCHEMA pgbouncer FROM keeper_pooler", "schema pgbouncer: GRANT USAGE TO keeper_pooler"),
        ("ALTER SCHEMA pgbouncer OWNER TO keeper", "schema pgbouncer: owner"),
        (
            "CREATE FUNCTION pgbouncer.lookup(int) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
            "function pgbouncer.lookup(integer): unexpected, dropped",
        ),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE keeper IN SCHEMA public GRANT DELETE ON TABLES TO keeper_readonly",
            "future tables: REVOKE DELETE FROM keeper_readonly",
        ),
    ],
)
def test_drift_is_reported_and_repaired(cluster: Cluster, server: str, drift: str, expected: str) -> None:
    del server
    run(cluster)
    ask(cluster, "keeper", "CREATE TABLE t (id int)")
    assert run(cluster) == []
    cluster.psql(drift, "access")
    (change,) = run(cluster)
    assert change.startswith(expected)
    assert run(cluster) == []


def test_a_password_is_changed_by_its_verifier_and_written_nowhere(cluster: Cluster, server: str) -> None:
    del server
    roles = wanted()["roles"]
    roles[1]["verifier"] = scram_verifier(new_password(), new_salt())
    assert "role keeper_app: new password" in run(cluster, roles=roles)
    assert run(cluster, roles=roles) == []
    stored = cluster.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'keeper_app'")
    assert stored == roles[1]["verifier"]
    log = (cluster.root / "log").read_text(errors="replace") if (cluster.root / "log").is_file() else ""
    assert "SCRAM-SHA-256$" not in log


def test_absent_role_is_dropped_unless_it_owns_objects(cluster: Cluster, server: str) -> None:
    del server
    extra = {"name": "gone", "kind": "read"}
    run(cluster, roles=[*wanted()["roles"], extra])
    absent = [*wanted()["roles"], {**extra, "state": "absent"}]
    assert run(cluster, roles=absent)[-1] == "role gone: dropped, with its privileges"
    assert run(cluster, roles=absent) == []
    cluster.psql("CREATE ROLE gone; ALTER SCHEMA public OWNER TO gone", "access")
    with pytest.raises(DatabaseError, match="role gone cannot be dropped") as error:
        converge(conninfo(cluster), {**wanted(), "roles": [{**extra, "state": "absent"}], "owner": "gone"})
    assert "objects" in error.value.seen
    cluster.psql("ALTER SCHEMA public OWNER TO keeper", "access")


def test_guard_is_recorded_in_every_database(cluster: Cluster, server: str) -> None:
    del server
    extra = {"extra_databases": {"second": "keeper"}}
    run(cluster, **extra)
    changes = run(cluster, guard=False, **extra)
    assert changes == ["database access: provision.guard = off", "database second: provision.guard = off"]
    for name in ("access", "second"):
        with psycopg.connect(cluster.url(name), autocommit=True) as connection:
            assert guarded(connection) is False
    run(cluster, **extra)
    with psycopg.connect(cluster.url("second"), autocommit=True) as connection:
        assert guarded(connection) is True


def test_extra_database_is_converged_too(cluster: Cluster, server: str) -> None:
    del server
    run(cluster, extra_databases={"second": "keeper"})
    assert run(cluster, extra_databases={"second": "keeper"}) == []
    with psycopg.connect(cluster.url("second", "keeper_app")) as connection:
        assert connection.execute("SELECT '[1]'::vector").fetchone() == ("[1]",)


@pytest.mark.parametrize(
    ("role", "seen"),
    [({"name": "a", "kind": "king"}, "kind 'king'"), ({"name": "a", "kind": "read", "limit": 1}, "limit")],
)
def test_refuses_an_invalid_role(cluster: Cluster, server: str, role: Any, seen: str) -> None:
    del server
    with pytest.raises(UsageError) as error:
        run(cluster, roles=[role])
    assert error.value.seen == seen


def test_only_the_pooler_may_call_the_lookup_which_never_returns_a_superuser(cluster: Cluster, server: str) -> None:
    del server
    roles = wanted()["roles"]
    for role in roles[:3]:
        role["verifier"] = scram_verifier(new_password(), new_salt())
    run(cluster, roles=roles)

    def look(name: str) -> list[tuple[Any, ...]]:
        return ask(cluster, "keeper_pooler", lookup.QUERY.replace("$1", f"'{name}'"))

    assert look("keeper_app") == [("keeper_app", roles[1]["verifier"])]
    for name in ("keeper_backup", "keeper_pooler", "nobody", "postgres"):
        assert look(name) == []
    for change, back in (
        ("NOLOGIN", "LOGIN"),
        ("VALID UNTIL '2020-01-01'", "VALID UNTIL 'infinity'"),
        ("SUPERUSER", "NOSUPERUSER"),
        ("REPLICATION", "NOREPLICATION"),
    ):
        cluster.psql(f"ALTER ROLE keeper_app {change}")
        assert look("keeper_app") == [], change
        cluster.psql(f"ALTER ROLE keeper_app {back}")
        assert len(look("keeper_app")) == 1
    for role in ("keeper", "keeper_app", "keeper_readonly", "keeper_backup", "keeper_monitor"):
        assert refused(cluster, role, "SELECT * FROM pgbouncer.lookup('keeper_app')")


@pytest.mark.parametrize(
    "drift",
    [
        "ALTER FUNCTION pgbouncer.lookup(text) RESET search_path",
        "ALTER FUNCTION pgbouncer.lookup(text) SECURITY INVOKER",
        "ALTER FUNCTION pgbouncer.lookup(text) OWNER TO keeper",
        "CREATE OR REPLACE FUNCTION pgbouncer.lookup(wanted text) RETURNS TABLE (username name, secret text)"
        " LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
        " AS 'SELECT rolname, rolpassword FROM pg_authid'",
        "DROP FUNCTION pgbouncer.lookup(text)",
    ],
)
def test_changed_lookup_is_restored(cluster: Cluster, server: str, drift: str) -> None:
    del server
    run(cluster)
    cluster.psql(drift, "access")
    changes = run(cluster)
    assert "function pgbouncer.lookup" in changes
    assert run(cluster) == []
    assert refused(cluster, "keeper_app", "SELECT * FROM pgbouncer.lookup('keeper_app')")


def test_killed_run_leaves_the_pooler_a_lookup(cluster: Cluster, server: str) -> None:
    """Attack: none; a run that replaces the function of an earlier version is killed before each of its changes."""
    del server
    roles = wanted()["roles"]
    roles[1]["verifier"] = scram_verifier(new_password(), new_salt())
    run(cluster, roles=roles)
    earlier = (
        "CREATE OR REPLACE FUNCTION pgbouncer.lookup(wanted text) RETURNS TABLE (username name, secret text)"
        " LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
        f" AS $_${lookup.BODY} -- of an earlier version$_$"
    )
    finished, number = False, 0
    while not finished:
        number += 1
        cluster.psql(earlier, "access")
        finished = _ended_before_change(cluster, roles, number)
        assert ask(cluster, "keeper_pooler", "SELECT username FROM pgbouncer.lookup('keeper_app')") == [("keeper_app",)]
        assert refused(cluster, "keeper_readonly", "SELECT * FROM pgbouncer.lookup('keeper_app')")
    assert number > 3
    assert run(cluster, roles=roles) == []


def _ended_before_change(cluster: Cluster, roles: list[dict[str, Any]], number: int) -> bool:
    """Converge in a process that SIGKILL ends before its change `number`; tell whether it reached the end."""
    child = os.fork()
    if child == 0:
        change, seen = Access.change, iter(range(1, number))

        def counted(self: Access, *words: Any) -> None:
            if next(seen, 0) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            change(self, *words)

        with contextlib.suppress(BaseException):
            Access.change = counted  # type: ignore[assignment, method-assign]
            run(cluster, roles=roles)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def test_lookup_ignores_the_search_path_of_its_caller(cluster: Cluster, server: str) -> None:
    del server
    roles = wanted()["roles"]
    roles[1]["verifier"] = scram_verifier(new_password(), new_salt())
    run(cluster, roles=roles)
    trap = (
        "CREATE TEMP TABLE pg_authid (rolname name, rolpassword text, rolcanlogin bool, rolsuper bool,"
        " rolreplication bool, rolvaliduntil timestamptz);"
        " INSERT INTO pg_authid VALUES ('postgres', 'SCRAM-SHA-256$x', true, false, false, null);"
        " SET search_path = pg_temp, public; SELECT * FROM pgbouncer.lookup('postgres')"
    )
    cluster.psql("GRANT TEMPORARY ON DATABASE access TO keeper_pooler", "access")
    with psycopg.connect(cluster.url("access", "keeper_pooler"), autocommit=True) as connection:
        cursor = connection.execute(trap.encode())
        while cursor.nextset():
            pass
        assert cursor.fetchall() == []


PLANTED = """
CREATE FUNCTION public.planted(name, name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN EXECUTE 'ALTER ROLE {role} SUPERUSER'; END IF;
  RETURN $1::text OPERATOR(pg_catalog.||) $2::text; END $$;
CREATE OPERATOR public.|| (leftarg = name, rightarg = name, function = public.planted);
CREATE FUNCTION public.format(text, name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN EXECUTE 'ALTER ROLE {role} SUPERUSER'; END IF;
  RETURN $1; END $$;
"""
VIEWED = """
CREATE FUNCTION public.viewed() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
  IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN EXECUTE 'ALTER ROLE {role} SUPERUSER'; END IF;
  RETURN true; END $$;
CREATE VIEW public.schema_migrations AS SELECT 1 AS version, public.viewed() AS dirty;
"""


def superusers(cluster: Cluster) -> str:
    return cluster.psql("SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper")


@pytest.mark.parametrize("planted", [PLANTED, VIEWED])
def test_objects_of_the_owner_never_run_as_the_superuser(cluster: Cluster, server: str, planted: str) -> None:
    run(cluster)
    ask(cluster, "keeper", planted.format(role="keeper"))
    run(cluster)
    assert superusers(cluster) == "postgres"
    report = look_from_afar(f"{server} dbname=access", "access")
    assert len(report.findings) > 1  # it could log in and run queries
    assert superusers(cluster) == "postgres"


def test_objects_that_any_role_can_create_in_14_never_run_as_the_superuser(cluster: Cluster, server: str) -> None:
    del server
    run(cluster)
    try:
        for database in ("postgres", "template1"):
            cluster.psql("GRANT CREATE ON SCHEMA public TO PUBLIC", database)  # as initdb of 14 leaves it
        with psycopg.connect(cluster.url("postgres", "keeper_app"), autocommit=True) as connection:
            connection.execute(PLANTED.format(role="keeper_app").encode())
        assert run(cluster) == [
            f"database {name}, schema public: REVOKE CREATE FROM PUBLIC" for name in ("postgres", "template1")
        ]
        assert superusers(cluster) == "postgres"
        with (
            psycopg.connect(cluster.url("postgres", "keeper_app"), autocommit=True) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        assert run(cluster) == []
    finally:
        cluster.psql("REVOKE CREATE ON SCHEMA public FROM PUBLIC; DROP OWNED BY keeper_app")
        cluster.psql("REVOKE CREATE ON SCHEMA public FROM PUBLIC", "template1")


def test_column_privileges_and_grant_options_are_revoked(cluster: Cluster, server: str) -> None:
    del server
    run(cluster)
    ask(cluster, "keeper", "CREATE TABLE t (id int, n int)")
    ask(cluster, "keeper", "GRANT UPDATE (n) ON t TO keeper_readonly")
    ask(cluster, "keeper", "GRANT DELETE ON t TO keeper_app WITH GRANT OPTION")
    ask(cluster, "keeper_app", "GRANT DELETE ON t TO keeper_readonly")
    assert run(cluster)[:2] == [
        "table t: REVOKE UPDATE (n) FROM keeper_readonly",
        "table t: REVOKE GRANT OPTION FOR DELETE FROM keeper_app",
    ]
    assert refused(cluster, "keeper_readonly", "UPDATE t SET n = 1")
    assert refused(cluster, "keeper_readonly", "DELETE FROM t")
    ask(cluster, "keeper_app", "DELETE FROM t")
    assert run(cluster) == []
