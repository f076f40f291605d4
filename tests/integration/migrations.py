"""A database and a directory of migrations, with our runner and golang-migrate to run on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from provision.cli import root
from provision.database import Connection, connect_pinned
from provision.errors import ProvisionError
from provision.host.access import Access, Role
from provision.host.tenants import converge
from provision.plan import tenants
from tests import plans
from tests.clusters import Cluster

REAL = os.environ.get("MIGRATE_BIN") or shutil.which("migrate")
needs_real = pytest.mark.skipif(not REAL, reason="golang-migrate is not installed: set MIGRATE_BIN")

NOTHING = (-1, False)


@dataclass(frozen=True)
class Done:
    """Output and exit code of a call."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Account:
    """The role that migrates, its schema, and what its URL adds."""

    role: str = "minion"
    schema: str = "public"
    query: str = ""


TENANT = Account("acme", "acme")
ACCOUNTS = {
    "owner": Account(),
    "tenant": TENANT,
    "tenant with search_path in the URL": replace(TENANT, query="&search_path=acme,public"),
}


@dataclass
class Project:
    """A database and its migrations directory."""

    cluster: Cluster
    database: str
    path: Path
    account: Account = Account()
    query: str = ""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """URL of the database as the role that migrates, over TCP."""
        place = self.cluster.url(self.database, self.account.role)
        return f"{place}?sslmode=disable{self.account.query}{self.query}"

    def write(self, **files: str | bytes) -> None:
        """Write files. In a keyword, __ is the dot before up or down, and .sql is appended: _1_a__up."""
        for name, body in files.items():
            self.put(name.removeprefix("_").replace("__", ".") + ".sql", body)

    def put(self, name: str, body: str | bytes) -> Path:
        """Write one file under its full name."""
        self.path.mkdir(exist_ok=True)
        path = self.path / name
        path.write_bytes(body if isinstance(body, bytes) else body.encode())
        return path

    def tables(self, *names: str) -> None:
        """Write migrations 1, 2, ... that create and drop these tables."""
        for number, name in enumerate(names, 1):
            self.put(f"{number:03d}_{name}.up.sql", f"CREATE TABLE {name} (id int);\n")
            self.put(f"{number:03d}_{name}.down.sql", f"DROP TABLE {name};\n")

    def arguments(self, command: str, *words: str) -> list[str]:
        """Arguments of our command."""
        return ["migrate", command, "--database", self.url, "--path", str(self.path), *words]

    def run(self, command: str, *words: str) -> Done:
        """Run our command in this process."""
        result = CliRunner().invoke(root, self.arguments(command, *words))
        if isinstance(result.exception, ProvisionError):
            return Done(result.exception.exit_code, result.stdout, f"{result.stderr}Error: {result.exception}")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        """Start our command as a separate process."""
        program = [sys.executable, "-c", "from provision.cli import main; main()"]
        call = [*program, *self.arguments(command, *words)]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def real_call(self, command: str, *words: str) -> list[str]:
        """Command line of golang-migrate, which needs -- before a negative version."""
        assert REAL
        negative = [word for word in words if word[1:].isdigit() and word.startswith("-")]
        end = ["--"] if negative else []
        return [REAL, "-path", str(self.path), "-database", self.url, command, *end, *words]

    def real(self, command: str, *words: str) -> Done:
        """Run golang-migrate. Its output may contain bytes of a file that are not UTF-8."""
        call = self.real_call(command, *words)
        done = subprocess.run(call, capture_output=True, text=True, errors="replace", check=False, timeout=60)
        return Done(done.returncode, done.stdout, done.stderr)

    def start_real(self, command: str, *words: str) -> subprocess.Popen[str]:
        """Start golang-migrate as a separate process."""
        call = self.real_call(command, *words)
        process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        self.started.append(process)
        return process

    def query_all(self, sql: str) -> list[tuple[object, ...]]:
        """Query the database as the role that migrates."""
        with psycopg.connect(self.url.partition("&")[0], autocommit=True, client_encoding="UTF8") as connection:
            return connection.execute(sql.encode()).fetchall()

    def execute(self, *statements: str) -> None:
        """Change the database as the role that migrates."""
        with psycopg.connect(self.url.partition("&")[0], autocommit=True, client_encoding="UTF8") as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def state(self, table: str = "") -> tuple[int, bool]:
        """Content of the version table, read as golang-migrate reads it."""
        table = table or f"{self.account.schema}.schema_migrations"
        if not self.query_all(f"SELECT to_regclass('{table}') IS NOT NULL")[0][0]:
            return NOTHING
        rows = self.query_all(f"SELECT version, dirty FROM {table}")
        assert len(rows) <= 1
        return (int(str(rows[0][0])), bool(rows[0][1])) if rows else NOTHING

    def made(self) -> set[str]:
        """Tables of the role's schema without those of the runner, and tables of other schemas with their schema."""
        own = self.account.schema
        rows = self.query_all(
            f"SELECT CASE WHEN n.nspname <> '{own}' THEN n.nspname || '.' ELSE '' END || c.relname FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('public', 'acme') AND c.relkind = 'r'"
        )
        return {str(row[0]) for row in rows} - {"schema_migrations", "schema_migrations_history"}


@pytest.fixture(scope="module")
def shared_database(cluster: Cluster) -> Iterator[str]:
    """One database per module: emptying a schema is a hundred times cheaper than creating a database."""
    name = "migrations"
    cluster.psql(f"CREATE DATABASE {name} OWNER minion")
    yield name
    cluster.psql(f"DROP DATABASE {name} WITH (FORCE)")
    cluster.psql(f"DROP ROLE IF EXISTS {', '.join(tenants.role_names(TENANT.schema))}")


@pytest.fixture
def project(
    cluster: Cluster, shared_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Project]:
    """An empty database and directory, for one of ACCOUNTS; ends processes that a failed test left."""
    account = ACCOUNTS[getattr(request, "param", "owner")]
    project = Project(cluster, shared_database, tmp_path / "migrations", account)
    with connect_pinned(cluster.url(shared_database), application="test", lock_timeout_ms=20_000) as connection:
        connection.execute("DROP SCHEMA IF EXISTS public, app, other, acme CASCADE")
        connection.execute("CREATE SCHEMA public AUTHORIZATION minion")
        if account != ACCOUNTS["owner"]:
            make_tenant(connection, account.schema)
    yield project
    for process in project.started:
        process.kill()
        process.communicate()


def make_tenant(connection: Connection, name: str) -> None:
    """Create a tenant without passwords."""
    listed = tenants.roles(name, plans.sample().access.tenant_limits, connections=100)
    roles = [Role(each.name, each.kind, None, each.connection_limit, None, each.settings) for each in listed]
    access = Access(connection)
    converge.roles(access, connection.info.dbname, {name: roles})
    converge.schemas(access, {name: roles})
    connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
