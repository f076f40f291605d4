"""`provision connect` and the programs of its page, against a real server and PgBouncer with TLS and SCRAM.

Here the programs use the direct connection, because PgBouncer of Debian 12 has no prepared statements for clients;
tests/system/test_pgbouncer.py runs them through the pooler of a prod host.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import yaml

from tests import poolers, snippets
from tests.authority import Authority
from tests.clusters import Cluster, free_port
from tests.integration.conftest import MIGRATIONS
from tests.sandboxes import Answer, provision

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/templates/golden/prod/pgbouncer-settings.ini"
HBA = """local all postgres trust
hostssl minion minion_app 127.0.0.1/32 scram-sha-256
host all postgres 127.0.0.1/32 trust
"""


@dataclass(frozen=True)
class Site:
    """An inventory with a vault, whose host is a server and a pooler of this machine."""

    cluster: Cluster
    inventory: Path
    key: Path
    pool_port: int

    def connect(self, *words: str) -> Answer:
        """Run `provision connect` with the inventory."""
        return provision("connect", "-i", self.inventory, "--vault-password-file", self.key, *words)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("connect")
    inventory, key = folder / "prod", folder / "vault-password"
    key.write_text("the vault's password of the test")
    authority, pool_port = Authority(), free_port()
    pair = authority.issue("127.0.0.1")
    server = Cluster.create()
    try:
        shutil.copytree(ROOT / "inventories/prod", inventory)
        (inventory / "tls").mkdir()
        (inventory / "tls/ca.crt").write_text(authority.text)
        variables = {
            "ansible_host": "127.0.0.1", "postgresql_port": server.port, "pgbouncer_port": pool_port,
            "postgresql_repository": "distribution", "postgresql_version": 17, "pgvector_install_method": "package",
            "pgvector_version": "0.8.0", "backup_allow_local_only": True,
        }  # fmt: skip
        hosts = {"all": {"children": {"database": {"hosts": {"db1": variables}}}}}
        (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
        made = provision("secrets", "init", inventory, "--vault-password-file", key)
        assert made.returncode == 0, made.stderr
        site = Site(server, inventory, key, pool_port)
        password = site.connect("--password", "--show", "password").stdout.strip()
        certificate, private = pair.write(server.root, "server")
        if os.geteuid() == 0:
            for path in (certificate, private):
                shutil.chown(path, "postgres", "postgres")
        for statement in (
            "CREATE ROLE minion LOGIN",
            f"CREATE ROLE minion_app LOGIN PASSWORD '{password}'",
            "CREATE DATABASE minion OWNER minion",
            f"ALTER SYSTEM SET ssl_cert_file = '{certificate}'",
            f"ALTER SYSTEM SET ssl_key_file = '{private}'",
            "ALTER SYSTEM SET ssl = on",
        ):
            server.psql(statement)
        server.psql('CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"', "minion")
        for path in sorted(MIGRATIONS.glob("*.up.sql")):
            server.psql(f"SET ROLE minion; {path.read_text()}", "minion")
        server.psql("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO minion_app", "minion")
        (server.data / "pg_hba.conf").write_text(HBA)
        server.psql("SELECT pg_reload_conf()")
        verifier = server.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'minion_app'")
        databases = {"minion": f"host=127.0.0.1 port={server.port}"}
        wanted = settings(server, pool_port, certificate, private, authority.text)
        with poolers.running(server.root, databases, {"minion_app": verifier}, **wanted):
            yield site
    finally:
        server.remove()


def settings(server: Cluster, port: int, certificate: Path, private: Path, authority: str) -> dict[str, str | int]:
    """Return the pooler's settings as prod has them: transactions, TLS on both sides."""
    found = dict(re.findall(r"^(pool_mode|ignore_startup_parameters) = (.+)$", GOLDEN.read_text(), re.M))
    assert len(found) == 2
    root = server.root / "ca.crt"
    root.write_text(authority)
    return {
        **found, "listen_port": port, "auth_type": "scram-sha-256", "default_pool_size": 2,
        "client_tls_sslmode": "require", "client_tls_cert_file": str(certificate), "client_tls_key_file": str(private),
        "server_tls_sslmode": "verify-full", "server_tls_ca_file": str(root),
    }  # fmt: skip


def loaded(path: Path) -> dict[str, str]:
    """Load a .env file as a shell does."""
    done = subprocess.run(
        ["env", "-i", "sh", "-c", f"set -a; . {path}; set +a; env"], capture_output=True, text=True, check=True
    )
    values = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return {key: value for key, value in values.items() if key.startswith(("PG", "DATABASE", "DIRECT"))}


def directly(folder: Path) -> dict[str, str]:
    """Return the .env file's variables, with the direct connection in place of the pooler's."""
    values = loaded(folder / ".env")
    (port,) = re.findall(r":(\d+)/", values["DIRECT_DATABASE_URL"])
    return values | {"DATABASE_URL": values["DIRECT_DATABASE_URL"], "PGPORT": port}


@pytest.fixture(scope="module")
def written(site: Site) -> Path:
    """A folder with the files of an application."""
    folder = site.inventory.parent / "app"
    done = site.connect("--password", "--write", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "SQLAlchemy", "Django", "node-postgres"])
def test_program_of_the_page_stores_a_memory_and_finds_it(
    site: Site, written: Path, tmp_path: Path, driver: str
) -> None:
    done = snippets.run(driver, tmp_path, directly(written))
    assert done.stdout == f"{snippets.REMEMBERED}\n", done.stderr
    query = f"SELECT count(*) FROM memories JOIN agents a ON a.id = agent_id WHERE a.name = '{driver}'"
    assert site.cluster.psql(query, "minion") == "1"


def test_every_program_of_the_page_is_run_by_this_test() -> None:
    assert set(snippets.programs()) == {"psycopg", "asyncpg", "SQLAlchemy", "Django", "node-postgres"}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "SQLAlchemy", "Django", "node-postgres"])
def test_program_refuses_a_server_of_another_authority(written: Path, tmp_path: Path, driver: str) -> None:
    (tmp_path / "ca.crt").write_text(Authority("a stranger").text)
    values = {key: text.replace(f"{written}/", f"{tmp_path}/") for key, text in directly(written).items()}
    done = snippets.run(driver, tmp_path, values)
    assert done.returncode != 0
    assert snippets.REMEMBERED not in done.stdout
    assert re.search("certificate|self-signed|signature", done.stderr, re.I), done.stderr


def test_written_files_are_private_and_every_client_accepts_them(site: Site, written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {".env", "pgpass", "pg_service.conf", "ca.crt"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in written.iterdir()} == {0o600}
    psql = str(site.cluster.bin / "psql")
    files = {
        "PGSERVICEFILE": str(written / "pg_service.conf"),
        "PGPASSFILE": str(written / "pgpass"),
        "PATH": "/usr/bin",
    }
    for service, port in (("minion", site.pool_port), ("minion-direct", site.cluster.port)):
        done = subprocess.run(
            [psql, f"service={service}", "-XAtc", "\\conninfo", "-c", "SELECT session_user"],
            env=files, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "minion_app" in done.stdout
        assert str(port) in done.stdout
    values = loaded(written / ".env")
    with psycopg.connect(values["DIRECT_DATABASE_URL"]) as session:
        assert session.info.port == site.cluster.port
        assert session.pgconn.ssl_in_use


def test_the_password_appears_only_on_request(site: Site) -> None:
    secret = site.connect("--password", "--show", "password").stdout.strip()
    assert len(secret) == 32
    for words in ([], ["--json"], ["--show", "env"], ["--show", "url"]):
        done = site.connect(*words)
        assert done.returncode == 0
        assert secret not in done.stdout + done.stderr
    other = site.connect("--role", "minion_readonly", "--password", "--json").stdout
    assert secret not in other
    assert json.loads(other)[0]["password"] not in (None, secret)


def test_a_file_of_the_shell_that_gets_a_password_is_private(site: Site, tmp_path: Path) -> None:
    command = ["connect", "-i", str(site.inventory), "--vault-password-file", str(site.key), "--show", "env"]
    modes = {}
    for name, more in (("with", ["--password"]), ("without", [])):
        with (tmp_path / name).open("w") as file:
            (tmp_path / name).chmod(0o644)
            done = provision(*command, *more, capture_output=False, stdout=file, stderr=subprocess.PIPE)
        assert done.returncode == 0
        modes[name] = stat.S_IMODE((tmp_path / name).stat().st_mode)
        assert ("its file now has mode 0600" in done.stderr) == bool(more)
    assert modes == {"with": 0o600, "without": 0o644}
    assert "PGPASSWORD=" in (tmp_path / "with").read_text()


def test_text_names_both_ports_the_ca_and_the_way_to_the_password(site: Site) -> None:
    shown = site.connect().stdout
    ca = site.inventory / "tls/ca.crt"
    query = f"sslmode=verify-full&sslrootcert={ca}"
    port = site.pool_port
    assert f"application URL  postgresql://minion_app@127.0.0.1:{port}/minion?{query}\n" in shown
    assert f"direct URL       postgresql://minion_app@127.0.0.1:{site.cluster.port}/minion?{query}" in shown
    assert f"CA file          {ca}\n" in shown
    assert "password         add --password to include it" in shown
    assert "note: db1 accepts connections from itself only: for other hosts set postgresql_listen_addresses" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--role", "minion_ap"], "no such login role"),
        (["--dbname", "nope"], "no such database"),
        (["--show", "pgpass"], "needs the password"),
        (["--limit", "db9"], "no host in group database"),
        (["--ca", "/ca", "--write", "app"], "exclude each other"),
    ],
)
def test_refuses_and_names_what_is_allowed(site: Site, words: list[str], message: str) -> None:
    done = site.connect(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_vault_without_its_password_is_named(site: Site) -> None:
    done = provision("connect", "-i", site.inventory)
    assert done.returncode == 2
    assert "--vault-password-file FILE" in done.stderr
