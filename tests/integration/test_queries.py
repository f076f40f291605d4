"""`provision queries` on a real server: counters, snapshots, plans, metrics, and a database whose owner is hostile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from provision import system
from provision.cli.queries import command
from provision.database import connect, connect_pinned
from provision.errors import DatabaseError
from provision.host.metrics import statements as metrics
from provision.host.queries import planned, snapshots
from provision.host.queries.ranking import ranked
from provision.host.queries.statements import Reading, Statement, read
from provision.plan import load
from tests import embedded
from tests.clusters import Cluster
from tests.embedded import VERSIONS
from tests.integration.conftest import MIGRATIONS
from tests.plans import sample, write

SEARCH = "SELECT content FROM memories WHERE importance > {} ORDER BY created_at LIMIT {}"


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    cluster = Cluster.create({"shared_preload_libraries": "pg_stat_statements", "compute_query_id": "auto"})
    try:
        cluster.psql("CREATE ROLE minion LOGIN; CREATE ROLE minion_backup LOGIN")
        cluster.psql("GRANT pg_read_all_data, pg_read_all_stats TO minion_backup")
        cluster.psql("CREATE DATABASE minion OWNER minion")
        cluster.psql(
            'CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"; CREATE EXTENSION pg_stat_statements', "minion"
        )
        for path in sorted(MIGRATIONS.glob("*.up.sql")):
            cluster.psql(path.read_text(), "minion", "minion")
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def loaded(server: Cluster) -> Cluster:
    """The server after a known load."""
    server.psql("SELECT public.pg_stat_statements_reset()", "minion")
    with psycopg.connect(server.url("minion", "minion"), autocommit=True) as session:
        for number in range(1, 8):
            session.execute(SEARCH.format(number / 10, number).encode())
        session.execute("INSERT INTO agents (name) SELECT 'agent' || n FROM generate_series(1, 3000) n")
        session.execute("INSERT INTO agents (name) VALUES ('one more')")
        session.execute("SET work_mem = '64kB'")
        session.execute("SELECT name, id, config FROM agents ORDER BY description, name DESC")
    return server


def reading(server: Cluster) -> Reading:
    with connect_pinned(server.url("minion", "minion_backup"), application="test") as session:
        return read(session)


def one(found: Reading, pattern: str) -> Statement:
    (statement,) = [each for each in found.statements if re.search(pattern, each.text)]
    return statement


def test_counts_each_normalised_statement_of_every_role(loaded: Cluster) -> None:
    found = reading(loaded)
    search = one(found, "FROM memories WHERE")
    assert search.text == SEARCH.format("$1", "$2")
    assert (search.role, search.database, search.counters.calls) == ("minion", "minion", 7)
    insert = one(found, "INSERT INTO agents .* generate_series")
    assert (insert.counters.rows, insert.counters.calls) == (3000, 1)
    assert insert.counters.wal_bytes > 3000 * 50
    assert one(found, "ORDER BY description").counters.temp_blocks > 0
    assert ranked(found.statements, "wal", 1)[0].statement == insert
    assert ranked(found.statements, "temp", 1)[0].statement.text.startswith("SELECT name, id, config")
    assert found.limit == 5000
    assert abs(found.at - found.reset) < 60


def test_two_moments_are_compared(loaded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "EVIDENCE", tmp_path)
    before = reading(loaded)
    assert snapshots.keep(before)
    with psycopg.connect(loaded.url("minion", "minion"), autocommit=True) as session:
        for _ in range(5):
            session.execute(SEARCH.format(0.5, 3).encode())
    earlier = snapshots.before(before.at)
    assert earlier
    found = snapshots.difference(reading(loaded), earlier)
    used = {each.text: each.counters for each in found.statements}
    assert used[SEARCH.format("$1", "$2")].calls == 5
    assert 0 < used[SEARCH.format("$1", "$2")].total_ms < one(before, "FROM memories WHERE").counters.total_ms + 100
    assert next(each for text, each in used.items() if "generate_series" in text).calls == 0


def test_plans_a_statement_with_parameters_without_running_it(loaded: Cluster) -> None:
    found = reading(loaded)
    before = loaded.psql("SELECT count(*) FROM agents WHERE name = 'one more'", "minion")
    assert int(before) > 0
    with connect(loaded.url("minion", "minion"), application="test") as session:
        plan = "\n".join(planned.explain(session, one(found, "FROM memories WHERE")))
        assert "Limit" in plan
        assert "Scan" in plan
        inserted = "\n".join(planned.explain(session, one(found, "INSERT INTO agents .* VALUES")))
        assert "Insert on agents" in inserted
        assert loaded.psql("SELECT count(*) FROM agents WHERE name = 'one more'", "minion") == before
        with pytest.raises(DatabaseError) as refused:  # without its constants, the types of the call are unknown
            planned.explain(session, one(found, "generate_series"))
        assert "is not unique" in refused.value.seen
        with pytest.raises(DatabaseError, match="cannot be planned"):
            planned.explain(session, replace(one(found, "FROM memories WHERE"), text="SELECT 1; DROP TABLE agents"))
        with pytest.raises(DatabaseError, match="cannot be planned"):
            planned.explain(session, replace(one(found, "FROM memories WHERE"), text="VACUUM agents"))
        assert session.execute("SELECT to_regclass('agents') IS NOT NULL").fetchone() == (True,)


def test_a_function_of_the_databases_owner_is_never_called_in_place_of_the_extension(loaded: Cluster) -> None:
    loaded.psql("CREATE DATABASE trap OWNER minion")
    try:
        loaded.psql(
            "CREATE TABLE public.called (n int); CREATE FUNCTION public.pg_stat_statements(boolean) RETURNS int"
            " LANGUAGE sql AS 'INSERT INTO public.called VALUES (1) RETURNING n'",
            "trap",
            "minion",
        )
        with connect_pinned(loaded.url("trap", "minion_backup"), application="test") as session:
            with pytest.raises(DatabaseError) as refused:
                read(session)
            assert "not installed" in refused.value.seen
        assert loaded.psql("SELECT count(*) FROM called", "trap") == "0"
    finally:
        loaded.psql("DROP DATABASE trap WITH (FORCE)")


def test_metrics_have_the_top_statements(loaded: Cluster) -> None:
    found = {each.name: each for each in metrics.metrics(reading(loaded))}
    shown = {labels["statement"]: value for labels, value in found["provision_statement_calls_total"].samples}
    assert shown[metrics.short(SEARCH.format("$1", "$2"))] == 7
    assert len(shown) <= 21


@pytest.fixture
def host(loaded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The command's host: this server, with a plan and an evidence folder of the test."""
    plan = sample(server={"socket_directory": loaded.host, "port": loaded.port})
    monkeypatch.setattr(load.load, "__defaults__", (write(tmp_path / "plan.json", plan),))
    monkeypatch.setattr(system, "EVIDENCE", tmp_path / "evidence")
    monkeypatch.setattr(system, "become", lambda: None)  # the server's access rules are trust
    return loaded


def queries(*words: str) -> Result:
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.usefixtures("host")
def test_command_prints_share_time_and_text_by_the_chosen_measure() -> None:
    shown = queries("--by", "wal", "--limit", "2").stdout
    assert re.search(r"SHARE +TOTAL +CALLS +MEAN", shown)
    assert re.search(r"^ *(9\d|100)\.\d% .* 1 .* 3,000 .*B$", shown, re.M)
    assert "    INSERT INTO agents (name) SELECT $1 || n FROM generate_series($2, $3) n" in shown
    found = json.loads(queries("--by", "calls", "--json").stdout)
    assert found["by"] == "calls"
    assert found["statements"][0]["calls"] == 7
    assert found["statements"][0]["statement"] == SEARCH.format("$1", "$2")


def test_command_compares_with_a_snapshot_and_says_when_there_is_none(host: Cluster) -> None:
    first = queries("--since", "1h")
    assert "no snapshot yet" in first.stderr
    with psycopg.connect(host.url("minion", "minion"), autocommit=True) as session:
        session.execute(SEARCH.format(0.5, 3).encode())
    found = json.loads(queries("--since", "1h", "--by", "calls", "--json").stdout)
    calls = {each["statement"]: each["calls"] for each in found["statements"]}
    assert calls[SEARCH.format("$1", "$2")] == 1


@pytest.mark.usefixtures("host")
def test_command_prints_the_plan_of_a_statement() -> None:
    rows = json.loads(queries("--by", "calls", "--json").stdout)["statements"]
    (search,) = [each for each in rows if each["statement"] == SEARCH.format("$1", "$2")]
    shown = queries("--plan", search["query_id"]).stdout
    assert shown.startswith(search["statement"])
    assert "Limit" in shown


@pytest.mark.parametrize("major", sorted(VERSIONS))
def test_counters_are_read_on_every_major(major: int) -> None:
    with embedded.cluster(major) as made:
        made.configure("shared_preload_libraries = 'pg_stat_statements'\n")
        with made.running() as session:
            session.execute("CREATE EXTENSION pg_stat_statements")
            session.execute("SELECT 4711 FROM generate_series(1, 3)")
            url = f"host={made.socket} port=5432 user=postgres dbname=postgres"
            with connect_pinned(url, application="test") as pinned:
                found = read(pinned)
    statement = one(found, r"SELECT \$1 FROM generate_series")
    assert (statement.counters.calls, statement.counters.rows, found.limit) == (1, 3, 5000)
