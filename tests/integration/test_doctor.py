"""The doctor reports each deviation made by hand on a real server, and nothing else."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from provision.checks.doctor import look_from_afar
from provision.checks.finding import Finding, Severity
from provision.checks.registry import Scope, examine, of, unknown_site
from provision.cli import root
from provision.errors import DatabaseError
from tests.clusters import Cluster

NAME = "patient"
CHECKED = len(of(Scope.DATABASE)) + 1  # and the connection


@pytest.fixture
def patient(cluster: Cluster) -> Iterator[str]:
    cluster.psql(f"CREATE DATABASE {NAME}")
    cluster.psql(f"REVOKE ALL ON DATABASE {NAME} FROM PUBLIC; ALTER DATABASE {NAME} SET provision.guard = on")
    cluster.psql("CREATE EXTENSION vector; REVOKE CREATE ON SCHEMA public FROM PUBLIC", NAME)
    yield cluster.url(NAME)
    cluster.psql(f"DROP DATABASE {NAME} WITH (FORCE)")


def findings(url: str, *, development: bool = False) -> list[Finding]:
    with psycopg.connect(url, autocommit=True) as session:
        return examine(Scope.DATABASE, session, site=unknown_site, development=development)


def found(url: str) -> dict[str, str]:
    return {each.id: each.seen for each in findings(url)}


@pytest.mark.parametrize(
    ("broken", "fixed", "check", "seen"),
    [
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
         "public-create", "PUBLIC may create in schema public"),
        (f"GRANT CONNECT ON DATABASE {NAME} TO PUBLIC", f"REVOKE CONNECT ON DATABASE {NAME} FROM PUBLIC",
         "public-connect", f"PUBLIC may CONNECT database {NAME}"),
        ("CREATE ROLE king SUPERUSER", "DROP ROLE king", "superusers", "role king is a superuser"),
        ("CREATE ROLE crowd LOGIN", "DROP ROLE crowd", "limits", "role crowd has no connection limit"),
        ("CREATE ROLE x_app LOGIN CONNECTION LIMIT 1", "DROP ROLE x_app", "timeouts", "role x_app has no lock_timeout"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'", "DROP FUNCTION f()",
         "security-definer", "function f()"),
        ("ALTER SYSTEM SET work_mem = '5MB'", "ALTER SYSTEM RESET work_mem", "shadowed",
         "work_mem is set by ALTER SYSTEM to 5MB"),
        ("ALTER SYSTEM SET log_statement = 'all'", "ALTER SYSTEM RESET log_statement", "log-statement",
         "log_statement = all"),
        ("ALTER SYSTEM SET full_page_writes = off", "ALTER SYSTEM RESET full_page_writes", "durability",
         "full_page_writes = off"),
        ("ALTER SYSTEM SET max_connections = 101", "ALTER SYSTEM RESET max_connections", "pending-restart",
         "max_connections waits for a restart"),
        ("ALTER SYSTEM SET ssl_min_protocol_version = 'TLSv1.1'", "ALTER SYSTEM RESET ssl_min_protocol_version",
         "tls-version", "ssl_min_protocol_version = TLSv1.1"),
        ("CREATE COLLATION by_hand (provider = icu, locale = 'de'); UPDATE pg_collation SET collversion = '1' WHERE "
         "collname = 'by_hand'", "DROP COLLATION by_hand", "collation", "collation by_hand was 1, the system has "),
        ("DROP EXTENSION vector", "CREATE EXTENSION vector", "vector", "type vector does not exist"),
    ],
)  # fmt: skip
def test_reports_the_deviation_until_it_is_fixed(
    cluster: Cluster, patient: str, broken: str, fixed: str, check: str, seen: str
) -> None:
    healthy = found(patient)
    cluster.psql(broken, NAME)
    cluster.psql("SELECT pg_reload_conf(), pg_sleep(0.3)", NAME)
    try:
        sick = found(patient)
    finally:
        cluster.psql(fixed, NAME)
        cluster.psql("SELECT pg_reload_conf(), pg_sleep(0.3)", NAME)
    assert seen in sick[check]
    assert seen not in healthy.get(check, "")
    assert found(patient) == healthy


def test_definer_s_function_without_pg_temp_is_reported_and_its_fix_ends_the_attack(
    cluster: Cluster, patient: str
) -> None:
    """Attack: a caller's temporary table is found before the owner's, for pg_temp comes first where it is not named."""
    cluster.psql("CREATE ROLE caller LOGIN", NAME)
    try:
        cluster.psql(
            f"CREATE TABLE allowed AS SELECT 'nobody' AS who; GRANT TEMPORARY, CONNECT ON DATABASE {NAME} TO caller;"
            " CREATE FUNCTION may(name text) RETURNS bool LANGUAGE sql SECURITY DEFINER"
            " SET search_path = pg_catalog, public AS 'SELECT EXISTS (SELECT FROM allowed WHERE who = name)'",
            NAME,
        )
        with psycopg.connect(cluster.url(NAME, "caller"), autocommit=True) as session:
            session.execute("CREATE TEMPORARY TABLE allowed AS SELECT 'caller'::text AS who")
            session.execute("GRANT SELECT ON allowed TO PUBLIC")
            attack = "SELECT may('caller')"
            assert session.execute(attack).fetchone() == (True,)  # the attack is real
            finding = next(each for each in findings(patient) if each.id == "security-definer")
            assert "function may(text) searches pg_catalog, public: temporary tables" in finding.seen
            words = shlex.split(finding.fix)
            cluster.psql(words[words.index("-c") + 1], NAME)
            assert session.execute(attack).fetchone() == (False,)
        assert "security-definer" not in found(patient)
    finally:
        cluster.psql("DROP OWNED BY caller; DROP ROLE caller; DROP FUNCTION may; DROP TABLE allowed", NAME)


KING = "SELECT rolsuper FROM pg_roles WHERE rolname = 'plotter'"


@pytest.fixture
def plotter(cluster: Cluster, patient: str) -> Iterator[str]:
    """The owner of the database, with functions that make it a superuser where a superuser calls them."""
    cluster.psql(
        "CREATE ROLE plotter LOGIN CONNECTION LIMIT 9;"
        f" ALTER DATABASE {NAME} OWNER TO plotter; ALTER SCHEMA public OWNER TO plotter; SET ROLE plotter;"
        " CREATE FUNCTION plot() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('is_superuser') = 'on' THEN EXECUTE 'ALTER ROLE plotter SUPERUSER'; END IF;"
        " RETURN true; END $$",
        NAME,
    )
    yield patient
    cluster.psql(f"ALTER ROLE plotter NOSUPERUSER; ALTER DATABASE {NAME} OWNER TO postgres")
    cluster.psql("REASSIGN OWNED BY plotter TO postgres; DROP OWNED BY plotter; DROP ROLE plotter", NAME)


def pasted(cluster: Cluster, finding: Finding) -> None:
    """Run the psql of a fix against this cluster, with its database and its role."""
    words = shlex.split(finding.fix)
    words = words[words.index("psql") + 1 :]
    options = {key: words[words.index(key) + 1] for key in ("-U", "-d") if key in words}
    with psycopg.connect(cluster.url(options["-d"], options.get("-U", "postgres")), autocommit=True) as session:
        for at, word in enumerate(words):
            if word == "-c":
                session.execute(words[at + 1].encode())


def test_validating_a_constraint_gives_its_owner_no_rights_of_a_superuser(cluster: Cluster, plotter: str) -> None:
    """Attack: the functions of a CHECK run with the rights of the session that validates it."""
    statement = "CREATE TABLE t AS SELECT 1 AS i; ALTER TABLE t ADD CONSTRAINT c CHECK (plot()) NOT VALID"
    cluster.psql(f"SET ROLE plotter; {statement}", NAME)
    pasted(cluster, next(each for each in findings(plotter) if each.id == "constraints-unchecked"))
    assert "constraints-unchecked" not in found(plotter)
    assert cluster.psql(KING).strip() == "f"
    # The attack is real: a superuser's session runs the function.
    cluster.psql("ALTER TABLE t DROP CONSTRAINT c, ADD CONSTRAINT c CHECK (plot()) NOT VALID", NAME)
    cluster.psql("ALTER TABLE t VALIDATE CONSTRAINT c", NAME)
    assert cluster.psql(KING).strip() == "t"


@pytest.mark.parametrize("setting", ["work_mem = '5MB'", "log_statement = 'all'"])
def test_reload_in_a_fix_calls_no_function_of_the_database_s_owner(
    cluster: Cluster, plotter: str, setting: str
) -> None:
    """Attack: a function of the owner comes first in the search_path that the owner stored in the database."""
    cluster.psql(
        "SET ROLE plotter; CREATE FUNCTION pg_reload_conf() RETURNS bool LANGUAGE sql AS 'SELECT public.plot()';"
        f" ALTER DATABASE {NAME} SET search_path = public, pg_catalog",
        NAME,
    )
    cluster.psql(f"ALTER SYSTEM SET {setting}")
    cluster.psql("SELECT pg_reload_conf(), pg_sleep(0.3)")
    name = setting.partition(" ")[0]
    try:
        fixes = [each for each in findings(plotter) if f"ALTER SYSTEM RESET {name}" in each.fix.replace('"', "")]
        assert fixes
        for each in fixes:
            pasted(cluster, each)
        assert cluster.psql(KING).strip() == "f"
    finally:
        cluster.psql(f"ALTER SYSTEM RESET {name}")
        cluster.psql("SELECT pg_reload_conf(), pg_sleep(0.3)")
    with psycopg.connect(plotter, autocommit=True) as session:
        session.execute("SELECT pg_reload_conf()")
    assert cluster.psql(KING).strip() == "t"


def test_stored_search_path_is_not_part_of_the_fix(cluster: Cluster, patient: str) -> None:
    """Attack: SQL in a name of the path, without spaces, which an administrator would paste with the fix."""
    evil = "x;ALTER/**/ROLE/**/minion/**/SUPERUSER;--"
    cluster.psql(
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1';"
        f" SET search_path = '{evil}'; ALTER FUNCTION public.f() SET search_path FROM CURRENT",
        NAME,
    )
    finding = next(each for each in findings(patient) if each.id == "security-definer")
    assert "x;" in finding.seen
    assert "SUPERUSER" not in finding.fix
    assert "SET search_path = pg_catalog, public, pg_temp" in finding.fix


def test_reports_access_without_a_password(patient: str) -> None:
    # The cluster of the tests trusts the loopback addresses.
    assert "trust" in found(patient)["hba-methods"]


def test_reports_remote_access_without_tls(cluster: Cluster, patient: str) -> None:
    assert found(patient)["tls"] == "ssl = off"
    rules = cluster.data / "pg_hba.conf"
    before = rules.read_text()
    assert "hba-plain" not in found(patient)
    try:
        rules.write_text(before + "host all all 10.0.0.0/8 scram-sha-256\n")
        assert "allows {all} from 10.0.0.0 without TLS" in found(patient)["hba-plain"]
        rules.write_text(before + "hostnossl all all all reject\nhost all all 10.0.0.0/8 scram-sha-256\n")
        assert "hba-plain" not in found(patient)
        rules.write_text(before + "hostssl all all 10.0.0.0/8 scram-sha-256\n")
        assert "hba-plain" not in found(patient)
    finally:
        rules.write_text(before)


def test_development_accepts_by_check_and_still_reports(cluster: Cluster, patient: str) -> None:
    cluster.psql(f"ALTER DATABASE {NAME} SET provision.guard = off")
    severities = {each.id: each.severity for each in look_from_afar(patient, NAME).findings}
    assert severities["archiving"] is Severity.ACCEPTED
    assert severities["hba-methods"] is Severity.CRITICAL


def test_reports_an_old_scratch_database_and_reads_no_age_in_a_tablespace(cluster: Cluster, patient: str) -> None:
    old, other = "minion_restoring_0123456789ab", "minion_verify_0123456789ab"
    cluster.psql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE elsewhere LOCATION ''")
    cluster.psql(f"CREATE DATABASE {old}")
    cluster.psql(f"CREATE DATABASE {other} TABLESPACE elsewhere")
    try:
        assert "scratch-databases" not in found(patient)
        oid = cluster.psql(f"SELECT oid FROM pg_database WHERE datname = '{old}'")
        os.utime(cluster.data / "base" / oid / "PG_VERSION", (0, 0))
        assert found(patient)["scratch-databases"] == f"database {old} was left by a killed command"
    finally:
        cluster.psql(f"DROP DATABASE {old}")
        cluster.psql(f"DROP DATABASE {other}")
        cluster.psql("DROP TABLESPACE elsewhere")


def test_catalogues_closed_to_the_role_are_unseen(cluster: Cluster, patient: str) -> None:
    assert patient
    cluster.psql(f"CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; GRANT CONNECT ON DATABASE {NAME} TO watcher")
    try:
        severities = {each.id: each.severity for each in findings(cluster.url(NAME, "watcher"))}
    finally:
        cluster.psql(f"REVOKE ALL ON DATABASE {NAME} FROM watcher; DROP ROLE watcher")
    assert severities["verifiers"] is Severity.UNSEEN
    assert severities["hba-methods"] is Severity.UNSEEN


def test_the_command_exits_3_and_prints_the_findings(patient: str) -> None:
    text = CliRunner().invoke(root, ["doctor", "--database", patient])
    assert text.exit_code == 3
    assert "critical: hba-methods (access)" in text.output
    assert f"{CHECKED} checks, " in text.output
    answer = json.loads(CliRunner().invoke(root, ["doctor", "--database", patient, "--json"]).output)
    assert answer["checks"] == CHECKED
    assert {"id", "area", "severity", "seen", "expected", "why", "fix", "safe"} == set(answer["findings"][0])


@pytest.mark.parametrize(
    ("role", "database", "check"),
    [("locked", NAME, "reach-nologin"), ("nobody", NAME, "reach-role"), ("postgres", "elsewhere", "reach-database")],
)
def test_reports_why_a_connection_fails(cluster: Cluster, patient: str, role: str, database: str, check: str) -> None:
    assert patient
    cluster.psql("CREATE ROLE locked NOLOGIN")
    try:
        done = CliRunner().invoke(root, ["doctor", "--json", "--database", cluster.url(database, role)])
    finally:
        cluster.psql("DROP ROLE locked")
    assert done.exit_code == 3
    (found,) = json.loads(done.output)["findings"]
    assert found["id"] == check
    assert found["fix"]


def test_a_lost_connection_ends_the_checks(cluster: Cluster, patient: str) -> None:
    with psycopg.connect(patient, autocommit=True) as session:
        cluster.psql(f"SELECT pg_terminate_backend({session.info.backend_pid}), pg_sleep(0.2)")
        with pytest.raises(DatabaseError, match="the connection was lost"):
            examine(Scope.DATABASE, session, site=unknown_site)


def test_reports_a_port_without_a_server() -> None:
    done = CliRunner().invoke(root, ["doctor", "--database", "postgresql://minion@127.0.0.1:1/minion"])
    assert done.exit_code == 3
    assert "reach-refused" in done.output


@pytest.mark.parametrize(
    ("broken", "fixed", "check", "seen"),
    [
        ("DROP INDEX memories_embedding_idx", "", "hnsw-missing", "has no HNSW index"),
        ("ALTER TABLE tools DISABLE TRIGGER tools_set_updated_at", "", "triggers-disabled", "tools_set_updated_at"),
        ("UPDATE schema_migrations SET dirty = true", "UPDATE schema_migrations SET dirty = false", "migrations-dirty",
         "version 2 is dirty"),
        ("ALTER TABLE tools ADD CONSTRAINT named CHECK (name <> 'x') NOT VALID", "", "constraints-unchecked", "named"),
        ("DROP TABLE feedback CASCADE", "-", "tables-missing", "table feedback is missing"),
        ("REVOKE CREATE ON SCHEMA public FROM PUBLIC, minion, pg_database_owner", "", "schema-permission",
         "role minion may not create in schema public"),
    ],
)  # fmt: skip
def test_reports_the_deviation_of_the_schema_and_the_statement_fixes_it(
    cluster: Cluster, migrated: str, broken: str, fixed: str, check: str, seen: str
) -> None:
    name = "schema_patient"
    cluster.psql(f"CREATE DATABASE {name} OWNER minion TEMPLATE {migrated}")
    try:
        cluster.psql("CREATE TABLE schema_migrations (version bigint, dirty boolean);"
                     " INSERT INTO schema_migrations VALUES (2, false)", name)  # fmt: skip
        cluster.psql("GRANT CREATE ON SCHEMA public TO minion; REVOKE CREATE ON SCHEMA public FROM PUBLIC", name)
        healthy = {each.id for each in schema_findings(cluster, name)}
        assert check not in healthy
        cluster.psql(broken, name)
        (found,) = [each for each in schema_findings(cluster, name) if each.id == check]
        assert seen in found.seen
        if fixed != "-":
            words = shlex.split(found.fix)
            cluster.psql(fixed or words[words.index("-c") + 1], name)
            assert {each.id for each in schema_findings(cluster, name)} == healthy
    finally:
        cluster.psql(f"DROP DATABASE {name} WITH (FORCE)")


def schema_findings(cluster: Cluster, name: str) -> list[Finding]:
    return [each for each in findings(cluster.url(name)) if each.area in ("schema", "privileges", "extensions")]


def test_names_in_the_database_cannot_act_on_the_terminal(patient: str) -> None:
    name = "z\x1b[2J\u202e\ncritical: superusers (roles)"
    with psycopg.connect(patient, autocommit=True) as session:
        session.execute("CREATE TABLE t (n int)")
        session.execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'")
        for kind in ("TRIGGER {} BEFORE INSERT ON t EXECUTE FUNCTION f()", "FUNCTION {}() RETURNS int"
                     " LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"):  # fmt: skip
            session.execute(sql.SQL("CREATE " + kind).format(sql.Identifier(name)))
        session.execute(sql.SQL("ALTER TABLE t DISABLE TRIGGER {}").format(sql.Identifier(name)))
        session.execute(sql.SQL("ALTER TABLE t ADD CONSTRAINT {} CHECK (n > 0) NOT VALID").format(sql.Identifier(name)))
    done = CliRunner().invoke(root, ["doctor", "--database", patient])
    assert done.output.count(r"z\x1b[2J\u202e\ncritical") >= 3
    assert "\x1b" not in done.output
    assert "\u202e" not in done.output
    assert "\ncritical: superusers" not in done.output
