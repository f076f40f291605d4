"""What the owner of a database stores for its sessions changes no session of provision, nor of the programs it runs."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from provision import pins, system
from provision.checks.finding import Severity
from provision.checks.registry import Scope, examine, unknown_site
from provision.database import connect_pinned
from provision.host.backup import counts, dump, tool
from provision.host.cluster import primary
from provision.plan.cluster import Member
from provision.plan.schema import Certificate
from tests import embedded
from tests.clusters import Cluster
from tests.plans import sample

HOSTILE = {
    "role": "minion",
    "search_path": "hostile, pg_catalog",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "idle_session_timeout": "1",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "row_security": "off",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "standard_conforming_strings": "off",
    "backslash_quote": "on",
    "bytea_output": "escape",
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-15",
    "xmlbinary": "hex",
    "xmloption": "document",
    "client_min_messages": "error",
    "check_function_bodies": "off",
    "synchronous_commit": "off",
    "default_tablespace": "pg_default",
    "temp_tablespaces": "pg_default",
    "local_preload_libraries": "missing",
    "client_encoding": "SQL_ASCII",
}


def settings(session: psycopg.Connection[tuple[object, ...]]) -> dict[str, str]:
    return {str(name): str(value) for name, value in session.execute("SELECT name, setting FROM pg_settings")}


@pytest.fixture
def owned(cluster: Cluster) -> Iterator[str]:
    """A database in which its owner stored a hostile value of every setting that is pinned."""
    cluster.psql("CREATE DATABASE owned OWNER minion")
    cluster.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)", "owned")
    cluster.psql("".join(f'ALTER DATABASE owned SET "{name}" = {quoted(value)};' for name, value in HOSTILE.items()),
                 "postgres", "minion")  # fmt: skip
    yield "owned"
    cluster.psql("DROP DATABASE owned WITH (FORCE)")


def quoted(value: str) -> str:
    return ", ".join(f"'{each}'" for each in value.split(", "))


def test_every_pinned_setting_has_a_hostile_value_here() -> None:
    one_choice = {"default_table_access_method"}  # the server has heap only
    assert set(HOSTILE) - {"client_encoding"} == set(pins.EVERYWHERE) - one_choice


@pytest.mark.parametrize("role", ["postgres", "minion"])
def test_a_pinned_session_ignores_what_the_database_stores(cluster: Cluster, owned: str, role: str) -> None:
    with connect_pinned(cluster.url(owned, role), application="test") as session:
        row = session.execute("SELECT current_user::text, current_setting('role')").fetchone()
        assert row == (role, "none")
        assert session.execute("SELECT NULL = 1").fetchone() == (None,)
        seen = settings(session)
    kept = {name: seen[name] for name in pins.EVERYWHERE if name in seen}
    assert kept == {name: value for name, value in pins.EVERYWHERE.items() if name in seen}
    assert seen["client_encoding"] == "UTF8"


def test_the_pooler_s_role_at_a_member_calls_no_function_of_the_owner(cluster: Cluster, owned: str) -> None:
    cluster.psql("CREATE ROLE minion_pooler LOGIN")
    with connect_pinned(cluster.url(owned), application="test") as session:
        session.execute("CREATE SCHEMA hostile")
        session.execute("GRANT USAGE ON SCHEMA hostile TO PUBLIC")
        session.execute("CREATE FUNCTION hostile.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'")
    member = Member("db1", cluster.host, "db1", cluster.port, 6432)
    certificate = Certificate(
        "pooler-client", "/missing.crt", "/missing.key", "client", "minion_pooler", (), own_names=False
    )
    plan = sample(access={"database": owned}, tls={"certificates": (certificate,)})
    try:
        place = primary.url(plan, member)
        assert primary.writable(place)
        assert not primary.writable(make_conninfo(place, options=""))  # the proof that the pins did it
        cluster.psql(f"ALTER DATABASE {owned} RESET local_preload_libraries; ALTER DATABASE {owned} RESET role")
        assert not primary.writable(make_conninfo(place, options="-c statement_timeout=0"))  # the owner's function
    finally:
        cluster.psql("DROP ROLE minion_pooler")


def test_dump_counts_and_programs_work_beside_hostile_settings(
    cluster: Cluster, owned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "POSTGRES", getpass.getuser())
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    plan = sample(
        server={"major": int(cluster.psql("SHOW server_version_num")) // 10000, "port": cluster.port,
                "socket_directory": cluster.host, "data_directory": str(cluster.data)},
        backup={"dump_directory": str(tmp_path), "processes": 1},
    )  # fmt: skip
    taken = dump.take(plan, owned)
    assert dump.check(tmp_path / taken["label"])["rows"] == {"public.t": 1}
    assert counts.take(cluster.url(owned), "point")["tables"]["public.t"]["rows"] == 1
    # The proof that the pins did it: the same program without them.
    words = (cluster.bin / "psql", "-XAtc", "SELECT current_user", plan.server.url(owned))
    assert tool.run(*words).stdout == "postgres\n"
    assert subprocess.run(words, check=False, capture_output=True, env={}).returncode != 0


def test_doctor_reports_all_stored_settings_in_one_finding(cluster: Cluster, owned: str) -> None:
    with connect_pinned(cluster.url(owned), application="test") as session:
        found = [each for each in examine(Scope.DATABASE, session, site=unknown_site) if each.id == "stored-settings"]
        assert [each.severity for each in found] == [Severity.WARNING]
        for name, value in HOSTILE.items():
            if name != "client_encoding":
                assert f'DATABASE "owned" sets {name} = {value}' in found[0].seen
        # The printed command, in a psql whose own session has the settings, among them default_transaction_read_only.
        command = found[0].fix.replace("runuser -u postgres -- psql", str(cluster.bin / "psql"))
        place = {**os.environ, "PGHOST": cluster.host, "PGPORT": str(cluster.port), "PGUSER": "postgres"}
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=place)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert not [each for each in examine(Scope.DATABASE, session, site=unknown_site) if each.id == found[0].id]
        session.execute('ALTER DATABASE owned SET "DateStyle" = "ISO, DMY"')
        form = [each for each in examine(Scope.DATABASE, session, site=unknown_site) if each.id == "stored-settings"]
        assert [each.severity for each in form] == [Severity.ACCEPTED]


@pytest.mark.parametrize("major", sorted(embedded.VERSIONS))
def test_settings_are_pinned_in_every_major(major: int) -> None:
    with embedded.cluster(major) as server, server.running() as session:
        session.execute("CREATE ROLE minion LOGIN")
        session.execute("CREATE DATABASE owned OWNER minion")
        later = {"transaction_timeout": "1"} if major >= 17 else {}
        for name, value in {**HOSTILE, **later}.items():
            session.execute(f'ALTER DATABASE owned SET "{name}" = {quoted(value)}'.encode())
        url = f"host={server.socket} port=5432 dbname=owned user=postgres"
        with connect_pinned(url, application="test") as pinned:
            assert pinned.execute("SELECT current_user::text, pg_sleep(0.01)::text").fetchone() == ("postgres", "")
            pinned.execute("CREATE VIEW public.trap AS SELECT 1 AS n")
            # The newest minor of every major can refuse views of users.
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="non-system view"):
                pinned.execute("SELECT n FROM public.trap")
