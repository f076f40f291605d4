"""Who gets in on a prod host, from outside and on it: each login role, wrong passwords, expired and locked roles."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import psycopg
import pytest

from tests.system.playbooks import Run
from tests.system.production import Production


def connect(production: Production, role: str, password: str | None = None) -> psycopg.Connection[tuple[object, ...]]:
    """Log in over the network, as an application on another host does."""
    return psycopg.connect(
        host=production.database.address,
        port=5432,
        dbname="minion",
        user=role,
        password=production.passwords[role] if password is None else password,
        connect_timeout=10,
    )


def on_host(
    production: Production, statement: str, user: str = "postgres", role: str = "postgres", database: str = "minion"
) -> str:
    command = f'runuser -u {user} -- psql -XAt -U {role} -d {database} -c "{statement}"'
    done = production.database.run(command)
    return (done.stdout + done.stderr).strip()


@dataclass(frozen=True)
class Again:
    """A second, verbose run, and the server's start before and after it."""

    run: Run
    before: str
    after: str


@pytest.fixture(scope="module")
def again(production: Production) -> Again:
    begun = "SELECT pg_postmaster_start_time()"
    before = on_host(production, begun)
    run = production.play("-vvv")
    return Again(run, before, on_host(production, begun))


def test_a_second_run_changes_nothing(again: Again) -> None:
    assert again.run.code == 0, again.run.output[-20000:]
    recap = again.run.recap
    assert {name: row.changed for name, row in recap.items()} == {"prod1": 0, "peer": 0}, again.run.output[-20000:]
    assert again.before[:2] == "20"
    assert again.after == again.before


@pytest.mark.parametrize("role", ["minion", "minion_app", "minion_readonly"])
def test_the_roles_with_a_password_get_in_over_the_network(production: Production, role: str) -> None:
    with connect(production, role) as connection:
        assert connection.execute("SELECT count(*) >= 0 FROM agents").fetchone() == (True,)


@pytest.mark.parametrize("role", ["minion", "minion_app", "minion_readonly"])
@pytest.mark.parametrize("password", ["", "minion_secret", "' OR true --", "x" * 500])
def test_a_wrong_password_is_refused(production: Production, role: str, password: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        connect(production, role, password)


@pytest.mark.parametrize("role", ["postgres", "minion_backup", "minion_monitor", "minion_pooler", "nobody"])
def test_other_roles_cannot_log_in_over_the_network(production: Production, role: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|rejects connection"):
        connect(production, role, production.passwords["minion"])


@pytest.mark.parametrize(
    ("change", "back", "message"),
    [
        ("NOLOGIN", "LOGIN", "not permitted to log in"),
        ("VALID UNTIL '2020-01-01'", "VALID UNTIL 'infinity'", "password authentication failed"),
        ("CONNECTION LIMIT 0", "CONNECTION LIMIT 10", "too many connections for role"),
    ],
)
def test_a_role_that_was_shut_out_stays_out(production: Production, change: str, back: str, message: str) -> None:
    on_host(production, f"ALTER ROLE minion_readonly {change}")
    try:
        with pytest.raises(psycopg.OperationalError, match=message):
            connect(production, "minion_readonly")
    finally:
        on_host(production, f"ALTER ROLE minion_readonly {back}")
    connect(production, "minion_readonly").close()


@pytest.mark.parametrize(
    ("user", "role", "said"),
    [
        ("postgres", "minion_pooler", "minion_pooler"),
        ("postgres", "minion_backup", "minion_backup"),
        ("nobody", "minion", "fe_sendauth: no password supplied"),
        ("nobody", "postgres", "pg_hba.conf rejects connection"),
        ("nobody", "minion_monitor", "fe_sendauth: no password supplied"),
        ("nobody", "minion_app", "fe_sendauth: no password supplied"),
    ],
)
def test_the_socket_admits_the_users_of_the_map(production: Production, user: str, role: str, said: str) -> None:
    assert said in on_host(production, "SELECT current_user", user, role)


def test_contracts_commands_work_for_every_system_user_with_the_password(production: Production) -> None:
    """An ordinary user dumps the database and restores it with its data, and applies and rolls back a file."""
    secret = production.passwords["minion"]

    def by_nobody(command: str) -> str:
        whole = f"cd /usr/local/share/provision && export PGPASSWORD={secret} && {command}"
        done = production.database.run(f"runuser -u nobody -- bash -o pipefail -c {shlex.quote(whole)}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with connect(production, "minion") as owner:
        owner.execute("INSERT INTO agents (name) VALUES ('contract')")
    on_host(production, "CREATE DATABASE contract OWNER minion")
    try:
        on_host(production, 'CREATE EXTENSION vector; CREATE EXTENSION \\"uuid-ossp\\"', database="contract")
        file = "psql -U minion -d contract -v ON_ERROR_STOP=1 -f migrations/001_initial_schema"
        by_nobody(f"{file}.up.sql")
        by_nobody(f"{file}.down.sql")
        by_nobody("pg_dump -U minion -d minion > /tmp/contract.sql")
        by_nobody("psql -q -U minion -d contract < /tmp/contract.sql")
        query = "SELECT count(*) FROM agents WHERE name = 'contract'"
        assert by_nobody(f'psql -U minion -d contract -XAtc "{query}"') == "1"
    finally:
        on_host(production, "DROP DATABASE contract WITH (FORCE)")
        on_host(production, "DELETE FROM agents WHERE name = 'contract'")
        production.database.run("rm -f /tmp/contract.sql")


def test_drift_is_repaired_and_named(production: Production) -> None:
    on_host(production, "GRANT DELETE ON memories TO minion_readonly; REVOKE INSERT ON memories FROM minion_app")
    run = production.play("--limit", "prod1", "--tags", "database")
    assert run.code == 0, run.output
    assert "table memories: REVOKE DELETE FROM minion_readonly" in run.text()
    assert "table memories: GRANT INSERT TO minion_app" in run.text()
    with connect(production, "minion_readonly") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM memories")


def test_a_broken_access_rule_is_found_before_the_server_takes_it(production: Production) -> None:
    networks = '{"postgresql_allowed_networks": ["10.0.0.0/8 trust #"]}'
    run = production.play("--limit", "prod1", "-e", networks)
    assert run.code != 0
    assert "expected a network" in run.text()
    connect(production, "minion_app").close()


def test_no_secret_is_on_the_host_in_its_logs_or_in_what_a_run_prints(production: Production, again: Again) -> None:
    run = again.run
    logs = production.database.run("cat /var/log/postgresql/*; journalctl --no-pager; ps auxwww").stdout
    statements = on_host(production, "SELECT query FROM pg_stat_statements")
    assert "duration" in logs or "checkpoint" in logs
    for name, secret in production.secrets.items():
        for what, text in (("the run", run.output), ("the logs", logs), ("pg_stat_statements", statements)):
            assert secret not in text, f"{name} is in {what}"
    # The pooler's lookup names the form of a verifier; a verifier goes on with its iterations.
    assert re.search(r"SCRAM-SHA-256\$\d", logs + statements + run.output) is None
