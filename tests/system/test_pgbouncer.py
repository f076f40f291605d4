"""The pooler of a prod host, from outside and on it: who gets in, what happens when things break, and under load."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from provision.controller.bench.pgbench import program
from provision.plan.secrets import new_password
from tests import snippets
from tests.sandboxes import provision
from tests.system.production import Production
from tests.until import until

CLIENTS = 500
WAIT_S = 15  # profiles/prod.yml: query_wait_timeout_s
READONLY_POOL = 5  # profiles/prod.yml: readonly_pool
TENANT_POOL = 4  # profiles/prod.yml: half of tenant_connections, less one for direct connections
READONLY_CLIENTS = 142  # 1000 clients, of which the role has the share of its pool: 5 of 35
PATIENCE_S = 5  # for a loaded machine, and for the pooler's own clock, which ticks three times a second
SERIALS = "for each in server pooler-client; do openssl x509 -noout -serial -in /etc/provision/tls/$each.crt; done"
REFUSED = r"authentication failed|no such user|login rejected|no authentication method|not allowed"
Connection = psycopg.Connection[Any]


def words(production: Production, role: str, port: int = 6432, **changed: Any) -> dict[str, Any]:
    """How an application on another host logs in."""
    return {
        "host": production.database.address,
        "port": port,
        "dbname": "minion",
        "user": role,
        "password": production.passwords.get(role, "x"),
        "sslmode": "verify-full",
        "sslrootcert": str(production.inventory / "tls/ca.crt"),
        "connect_timeout": 30,
        **changed,
    }


def connect(production: Production, role: str = "minion_app", port: int = 6432, **changed: Any) -> Connection:
    connection = psycopg.connect(**words(production, role, port, **changed), autocommit=True)
    connection.prepare_threshold = None
    return connection


def on_host(production: Production, command: str) -> str:
    done = production.database.run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def as_postgres(production: Production, statement: str) -> str:
    return on_host(production, f'runuser -u postgres -- psql -XAtq -d minion -c "{statement}"')


def console(production: Production, statement: str, *, headers: bool = False) -> str:
    options = "-XA --pset footer=off" if headers else "-XAt"
    return on_host(
        production, f"runuser -u postgres -- psql {options} -p 6432 -U pgbouncer -d pgbouncer -c '{statement}'"
    )


def eventually(production: Production, role: str = "minion_app", seconds: float = 20) -> float:
    """Log in and ask until it works, as a client that retries; give the seconds that it took."""
    begun = time.monotonic()
    while True:
        try:
            with connect(production, role) as connection:
                connection.execute("SELECT 1")
                return time.monotonic() - begun
        except psycopg.OperationalError:
            if time.monotonic() - begun > seconds:
                raise
            time.sleep(0.2)


def await_clients(production: Production, number: int, seconds: float = 120) -> None:
    """Wait until the application has so many connections."""

    def seen() -> int:
        return console(production, "SHOW CLIENTS").count("|minion_app|minion|")

    assert until(lambda: seen() >= number, seconds), seen()


@pytest.mark.parametrize("role", ["minion", "minion_app", "minion_readonly"])
def test_roles_with_a_password_get_in_encrypted_on_both_sides(production: Production, role: str) -> None:
    with connect(production, role) as connection:
        row = connection.execute("SELECT session_user, pg_backend_pid()").fetchone()
        assert row is not None
        assert row[0] == role
        assert row[1] != connection.info.backend_pid
        assert connection.pgconn.ssl_in_use
    assert as_postgres(production, f"SELECT ssl FROM pg_stat_ssl WHERE pid = {row[1]}") == "t"


@pytest.fixture(scope="module")
def application(production: Production, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of an application, from the files that `provision connect` writes."""
    folder = tmp_path_factory.mktemp("application")
    inventories = ("-i", production.inventory, "-i", production.database.inventory, "--limit", "prod1")
    secret = ("--vault-password-file", production.key, "--password")
    done = provision("connect", *inventories, *secret, "--write", folder)
    assert done.returncode == 0, done.stderr
    lines = (folder / ".env").read_text().splitlines()
    return {name: text.strip("'") for name, _, text in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "SQLAlchemy", "Django", "node-postgres"])
def test_program_of_the_page_stores_a_memory_and_finds_it_with_prepared_statements(
    production: Production, application: dict[str, str], tmp_path: Path, driver: str
) -> None:
    assert (application["PGPORT"], application["PGSSLMODE"]) == ("6432", "verify-full")
    before = prepared(production)
    try:
        done = snippets.run(driver, tmp_path, application)
        assert done.stdout == f"{snippets.REMEMBERED}\n", done.stderr
        assert prepared(production) > before
        query = f"SELECT count(*) FROM memories JOIN agents a ON a.id = agent_id WHERE a.name = '{driver}'"
        assert as_postgres(production, query) == "1"
    finally:
        as_postgres(production, f"DELETE FROM agents WHERE name = '{driver}'")


def prepared(production: Production) -> int:
    """Count the statements that clients have prepared through PgBouncer."""
    titles, *rows = console(production, "SHOW STATS_TOTALS", headers=True).splitlines()
    column = titles.split("|").index("client_parse_count")
    return sum(int(row.split("|")[column]) for row in rows)


def test_tenants_share_the_pooler_and_see_nothing_of_each_other(production: Production) -> None:
    names, passwords = ("acme", "globex"), dict[str, str]()
    for name in names:
        made = json.loads(on_host(production, f"provision tenant add {name} --json"))
        passwords |= {each["role"]: each["password"] for each in made["logins"]}
        assert made["version"] == "2"

    def application(name: str, port: int = 6432) -> Connection:
        return connect(production, f"{name}_app", port, password=passwords[f"{name}_app"])

    try:
        for name in names:
            with application(name) as session:
                session.execute("INSERT INTO agents (name) VALUES (%s)", (f"only of {name}",))
        # A run knows the tenants that the inventory does not declare, and keeps their rights.
        run = production.play("--limit", "prod1", "--tags", "database")
        assert run.code == 0, run.text()
        for name in names:
            for port in (5432, 6432):
                with application(name, port) as session:
                    assert session.execute("SELECT name FROM agents").fetchall() == [(f"only of {name}",)]
        with application("acme") as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT name FROM globex.agents")
        holders = [application("acme") for _ in range(TENANT_POOL + 1)]
        for each in holders[:-1]:
            each.execute("BEGIN; SELECT 1")
        with ThreadPoolExecutor() as pool:
            waits = pool.submit(holders[-1].execute, "SELECT 1")
            time.sleep(1)
            assert not waits.done()
            with application("globex") as session:
                assert session.execute("SELECT 1").fetchone() == (1,)
            holders[0].execute("COMMIT")
            assert waits.result(PATIENCE_S).fetchone() == (1,)
        for each in holders:
            each.close()
        (job,) = json.loads(on_host(production, "provision maintain sessions --json"))
        assert {name: reported.partition(",")[0] for name, reported in job["tenants"].items()} == dict.fromkeys(
            names, "done"
        )
        folder = json.loads(on_host(production, "provision tenant export acme --json"))["folder"]
        done = on_host(production, f"provision tenant import acme {folder} --replace --yes-destroy acme --json")
        assert json.loads(done)["rows"]["acme.agents"] == 1
        with application("acme") as session:
            assert session.execute("SELECT name FROM agents").fetchall() == [("only of acme",)]
    finally:
        for name in names:
            on_host(production, f"provision tenant drop {name} --yes-destroy {name} --without-export")


def test_idle_clients_of_one_role_do_not_shut_out_another(production: Production) -> None:
    """Attack: a role that may only read opens clients until the pooler accepts no more."""
    most = READONLY_CLIENTS + 20
    held: list[Connection] = []
    try:
        while len(held) < most:
            try:
                held.append(connect(production, "minion_readonly"))
            except psycopg.OperationalError as error:
                assert "client connections exceeded" in str(error)  # noqa: PT017 - of whichever attempt is refused
                break
        assert len(held) <= READONLY_CLIENTS
        assert len(held) >= READONLY_CLIENTS - 5
        with connect(production) as connection:
            assert connection.execute("SELECT session_user").fetchone() == ("minion_app",)
    finally:
        for each in held:
            each.close()


@pytest.mark.parametrize("role", ["minion_app", "nobody"])
@pytest.mark.parametrize("password", ["minion_secret", "' OR true --", "x" * 500])
def test_a_wrong_password_is_refused(production: Production, role: str, password: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=REFUSED):
        connect(production, role, password=password)


@pytest.mark.parametrize("role", ["postgres", "minion_backup", "minion_monitor", "minion_pooler", "pgbouncer"])
@pytest.mark.parametrize("database", ["minion", "postgres", "pgbouncer"])
def test_other_roles_cannot_log_in(production: Production, role: str, database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=REFUSED):
        connect(production, role, password=production.passwords["minion"], dbname=database)


@pytest.mark.parametrize(
    ("change", "back"), [("NOLOGIN", "LOGIN"), ("VALID UNTIL '2020-01-01'", "VALID UNTIL 'infinity'")]
)
def test_a_role_that_was_shut_out_stays_out(production: Production, change: str, back: str) -> None:
    connect(production, "minion_readonly").close()
    as_postgres(production, f"ALTER ROLE minion_readonly {change}")
    try:
        with pytest.raises(psycopg.OperationalError, match=REFUSED):
            connect(production, "minion_readonly")
    finally:
        as_postgres(production, f"ALTER ROLE minion_readonly {back}")
    connect(production, "minion_readonly").close()


def test_login_is_refused_without_tls_with_a_wrong_authority_and_by_a_wrong_name(
    production: Production, tmp_path: Path
) -> None:
    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        connect(production, sslmode="disable", sslrootcert="")
    stranger = tmp_path / "ca.crt"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=stranger", "-keyout", str(tmp_path / "ca.key"), "-out", str(stranger)],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connect(production, sslrootcert=str(stranger))
    with pytest.raises(psycopg.OperationalError, match=r'does not match host name "db\.example\.com"'):
        connect(production, host="db.example.com", hostaddr=production.database.address)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_the_pooler_itself_refuses_old_versions_of_tls(production: Production) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # What this side refuses by itself it would not even send.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection((production.database.address, 6432), timeout=10) as plain:
        plain.sendall(struct.pack("!II", 8, 80877103))  # SSLRequest of the frontend/backend protocol
        assert plain.recv(1) == b"S"
        with pytest.raises(ssl.SSLError, match=r"alert protocol version|ALERT_PROTOCOL_VERSION"):
            context.wrap_socket(plain)
    connect(production, ssl_max_protocol_version="TLSv1.2").close()


def test_prepared_statements_of_a_driver_work(production: Production) -> None:
    with connect(production) as connection, connect(production) as other:
        for number in range(50):
            for each in (connection, other):
                row = each.execute("SELECT %s::int + 1", (number,), prepare=True).fetchone()
                assert row == (number + 1,)


def test_a_client_s_settings_end_with_its_transaction(production: Production) -> None:
    with connect(production) as connection:
        connection.execute("BEGIN; SET LOCAL work_mem = '5MB'; COMMIT")
        assert connection.execute("SELECT current_setting('statement_timeout')").fetchone() == ("30s",)
        assert connection.execute("SELECT current_setting('work_mem')").fetchone() != ("5MB",)


def test_a_rotated_password_works_at_once_in_both_lanes_and_the_old_one_in_neither(production: Production) -> None:
    old = production.passwords["minion_app"]
    with connect(production) as session:
        done = provision(
            "secrets", "rotate", production.inventory, "minion_app", "--vault-password-file", production.key,
            "--", "-i", production.database.inventory, "--limit", "prod1", cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert production.passwords["minion_app"] != old
        for port in (5432, 6432):
            connect(production, port=port).close()
            with pytest.raises(psycopg.OperationalError, match=REFUSED):
                connect(production, port=port, password=old)
        # The session that was open goes on, also where the pooler has to open further server connections for it.
        as_postgres(production, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'minion_app'")
        time.sleep(0.5)
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_an_exhausted_pool_gives_an_error_in_time_lets_the_administrator_in_and_recovers(
    production: Production,
) -> None:
    holders = [connect(production, "minion_readonly") for _ in range(READONLY_POOL)]
    try:
        for each in holders:
            each.execute("BEGIN")
        waiting = connect(production, "minion_readonly")
        begun = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
            waiting.execute("SELECT 1")
        assert WAIT_S - 1 < time.monotonic() - begun < WAIT_S + PATIENCE_S
        assert "minion_readonly" in console(production, "SHOW POOLS")
        assert as_postgres(production, "SELECT 1") == "1"
        connect(production, "minion_app").close()
    finally:
        for each in holders:
            each.close()
    assert eventually(production, "minion_readonly", 2) < 2


def test_a_server_that_is_down_gives_an_error_in_time_and_serves_again_alone(production: Production) -> None:
    with connect(production) as session:
        unit = on_host(production, 'pg_lsclusters -h | awk \'{print "postgresql@" $1 "-" $2}\'')
        on_host(production, f"systemctl stop {unit}")
        try:
            begun = time.monotonic()
            with ThreadPoolExecutor() as pool:
                asked, came = pool.submit(session.execute, "SELECT 1"), pool.submit(connect, production)
                for failure in (asked.exception(WAIT_S + PATIENCE_S), came.exception(WAIT_S + PATIENCE_S)):
                    assert isinstance(failure, psycopg.OperationalError)
            assert time.monotonic() - begun < WAIT_S + PATIENCE_S
            assert "PgBouncer" in console(production, "SHOW VERSION")
        finally:
            on_host(production, f"systemctl start {unit}")
    assert eventually(production) < PATIENCE_S


def test_refuses_pools_that_exceed_what_the_server_has_and_a_taken_port(production: Production) -> None:
    before = on_host(production, "sha256sum /etc/pgbouncer/provision/*")
    limit = int(as_postgres(production, "SHOW max_connections"))
    variables = json.dumps(
        {"pgbouncer_pools": {"minion_app": limit + 10}, "postgresql_settings": {"log_statement": "mod"}}
    )
    run = production.play("--limit", "prod1", "-e", variables)
    assert run.code != 0
    assert "nothing was changed on this host" in run.text()
    assert f"pgbouncer_pools.minion_app: {limit + 10} exceeds the role's connection limit 60" in run.text()
    assert (
        f"but max_connections {limit} - 3 for administrators - 5 for direct connections leaves {limit - 8}"
        in run.text()
    )
    holder = "import socket, time; s = socket.create_server(('', 6433)); time.sleep(60)"
    on_host(production, f'python3 -c "{holder}" >/dev/null 2>&1 & echo $! >/run/holder')
    run = production.play("--limit", "prod1", "-e", "pgbouncer_port=6433", "-e", "pgbouncer_restart_allowed=true")
    pid = on_host(production, "kill $(cat /run/holder); cat /run/holder; rm /run/holder")
    assert run.code != 0
    assert re.search(rf"port 6433 is taken by process {pid} \(python3", run.text())
    assert on_host(production, "sha256sum /etc/pgbouncer/provision/*") == before


def test_a_configuration_that_would_not_work_is_found_before_it_is_taken(production: Production) -> None:
    before = on_host(production, "sha256sum /etc/pgbouncer/provision/*")
    variables = json.dumps({"database_extra_databases": {"nowhere": "minion"}})
    run = production.play("--limit", "prod1", "--tags", "pgbouncer", "-e", variables)
    assert run.code != 0
    assert "the pooler cannot use database nowhere with this configuration" in run.text()
    assert on_host(production, "sha256sum /etc/pgbouncer/provision/*") == before
    connect(production).close()


def test_a_pause_lets_clients_wait_and_ends_by_itself(production: Production) -> None:
    with connect(production) as session:
        assert "paused" in on_host(production, "provision pool pause --at-most=4")
        begun = time.monotonic()
        assert session.execute("SELECT 1").fetchone() == (1,)
        assert 2 < time.monotonic() - begun < 4 + PATIENCE_S
    assert on_host(production, "provision pool resume") == "nothing was paused"
    assert f"query_wait_timeout|{WAIT_S}|" in console(production, "SHOW CONFIG")


def test_a_pause_does_not_wait_for_ever_for_a_transaction(production: Production) -> None:
    with connect(production) as session:
        session.execute("BEGIN")
        said = on_host(production, "provision pool pause --wait=1")
        assert "1 transactions still run after 1 s" in said
        session.execute("COMMIT")
    assert on_host(production, "provision pool resume") == "resumed"
    connect(production).close()


def test_the_only_finding_of_the_doctor_is_the_version(production: Production) -> None:
    shown = production.database.run("runuser -u postgres -- provision doctor --database dbname=minion --json").stdout
    found = [each["id"] for each in json.loads(shown)["findings"] if each["area"] == "pooler"]
    assert set(found) <= {"pooler-version"}, shown


@dataclass
class Load:
    """What rounds of pgbench said, one after the other."""

    said: list[str] = field(default_factory=list)

    def counted(self) -> tuple[int, int]:
        """Give transactions that were processed, and that failed or whose client was lost."""
        counts = [failed(text) for text in self.said]
        return sum(done for done, _ in counts), sum(lost for _, lost in counts)


@contextmanager
def load(production: Production, folder: Path, *options: str) -> Iterator[Load]:
    """Run pgbench through the pooler, as an application elsewhere does, round after round in a `with` block."""
    script = folder / "script.sql"
    # Slow and at a given rate: statements are under way at every moment, and the machine is not busy with nothing else.
    script.write_text("SELECT count(*), pg_sleep(0.02) FROM agents;\n")
    names = {"dbname": "PGDATABASE", "connect_timeout": "PGCONNECT_TIMEOUT"}
    given = {names.get(key, f"PG{key.upper()}"): str(value) for key, value in words(production, "minion_app").items()}
    command = [program(), "-n", "-f", str(script), *options]
    ended, found = threading.Event(), Load()

    def rounds() -> None:
        while not ended.is_set():
            done = subprocess.run(
                command,
                env={**os.environ, **given},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            found.said.append(done.stdout)

    running = threading.Thread(target=rounds)
    running.start()
    try:
        yield found
    finally:
        ended.set()
        running.join()


def failed(said: str) -> tuple[int, int]:
    """Read transactions that were processed, and that failed or whose client was lost."""
    done = re.search(r"number of transactions actually processed: (\d+)", said)
    lost = re.search(r"number of failed transactions: (\d+)", said)
    assert done, said[-2000:]
    aborted = said.count("aborted") + said.count("error:") + said.count("fatal")
    return int(done[1]), (int(lost[1]) if lost else 0) + aborted


def test_500_clients_lose_nothing_while_the_server_restarts_and_its_certificate_is_renewed(
    production: Production, tmp_path: Path
) -> None:
    def started() -> str:
        return as_postgres(production, "SELECT pg_postmaster_start_time()")

    first, before = started(), on_host(production, SERIALS)
    other = tmp_path / "new"
    other.mkdir()
    # 500 that stay, with prepared statements, and four that log in anew for each transaction.
    with (
        # Each round takes about 15 s after its clients have connected; connecting may take another 15 s.
        load(production, tmp_path, "-t", "24", "-c", str(CLIENTS), "-j", "2", "-M", "prepared", "-R", "800") as staying,
        load(production, other, "-t", "75", "-c", "4", "-C", "-R", "20") as coming,
    ):
        await_clients(production, CLIENTS)
        # A wrong mode makes a run replace certificates; meanwhile both stay readable.
        on_host(production, "chmod 0664 /etc/provision/tls/server.crt /etc/provision/tls/pooler-client.crt")
        variables = json.dumps(
            {"postgresql_settings": {"track_activity_query_size": 2048}, "postgresql_restart_allowed": True}
        )
        run = production.play("--limit", "prod1", "--tags", "postgresql,pgbouncer,tls", "-e", variables)
        assert run.code == 0, run.output
    assert first < started()
    after = on_host(production, SERIALS)
    assert all(old != new for old, new in zip(before.splitlines(), after.splitlines(), strict=True)), (before, after)
    for each, least in ((staying, CLIENTS), (coming, CLIENTS / 5)):  # a login takes long on a busy machine
        processed, lost = each.counted()
        assert (lost, processed > least) == (0, True), "\n".join(each.said)[-3000:]
    with connect(production) as connection:
        assert connection.execute("SHOW track_activity_query_size").fetchone() == ("2kB",)
    back = production.play("--limit", "prod1", "--tags", "postgresql", "-e", "postgresql_restart_allowed=true")
    assert back.code == 0, back.output
    with connect(production) as connection:
        assert connection.execute("SHOW track_activity_query_size").fetchone() == ("1kB",)


def test_a_password_that_is_not_a_role_s_is_in_no_log_of_the_pooler(production: Production) -> None:
    secret = new_password()
    with pytest.raises(psycopg.OperationalError):
        connect(production, password=secret)
    logs = on_host(production, "journalctl --no-pager -u pgbouncer")
    assert "minion_app" in logs
    for each in (secret, *production.passwords.values()):
        assert each not in logs
    assert "SCRAM-SHA-256$" not in logs
