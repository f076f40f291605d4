"""A server with tenants and a PgBouncer before it, both with real passwords, configured as a host of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from plugins.filter.filters import access as access_filter
from provision.controller import inputs
from provision.host import lookup
from provision.host.access import converge
from provision.host.migrate.narrate import Narrator
from provision.host.migrate.runner import Runner
from provision.host.migrate.settings import Settings
from provision.host.tenants import login, manage
from provision.plan.schema import Plan
from provision.quoting import conninfo
from tests import plans, poolers
from tests.clusters import Cluster, run
from tests.templates.test_render import render, template

MIGRATIONS = Path(__file__).parents[1] / "migrations"
HBA = """
local all postgres trust
local all minion trust
local all minion_pooler trust
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
"""
PRELOAD = {"shared_preload_libraries": "pg_stat_statements"}
VECTOR = "[" + ",".join(["0.1"] * 1536) + "]"


@dataclass
class Place:
    """The server, its plan, the pooler's port and the passwords of every role."""

    server: Cluster
    plan: Plan
    pooler: int
    passwords: dict[str, str]

    def url(self, role: str, *, pooled: bool = False) -> str:
        """Return how a role logs in over TCP, directly or through the pooler."""
        port = self.pooler if pooled else self.server.port
        place = {"host": "127.0.0.1", "port": port, "dbname": "minion", "user": role}
        return conninfo({**place, "password": self.passwords[role]})

    def session(self, role: str, *, pooled: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
        """Log in over TCP."""
        session = psycopg.connect(self.url(role, pooled=pooled), autocommit=True)
        session.prepare_threshold = None
        return session

    def ask(self, role: str, statement: str, *given: object, pooled: bool = False) -> list[tuple[Any, ...]]:
        """Run one statement as a role."""
        with self.session(role, pooled=pooled) as session:
            cursor = session.execute(statement.encode(), given or None)
            return cursor.fetchall() if cursor.description else []

    def add(self, name: str, *, migrate: bool = True) -> manage.Added:
        """Create a tenant as the command does."""
        made = manage.add(self.plan, name)
        self.passwords |= made.passwords
        if migrate:
            self.migrate(name)
        return made

    def migrate(self, name: str) -> list[int]:
        """Migrate a tenant; return the versions that were applied."""
        with login.superuser(self.plan) as session, login.acting(self.plan, session, name) as acting:
            report = Runner(Settings(acting.url, Path(self.plan.migrations.directory)), Narrator()).up()
        return [step.version for step, _ in report.done]

    def remember(self, name: str, content: str, *, pooled: bool = True) -> None:
        """Store an agent and a memory as the tenant's application."""
        with self.session(f"{name}_app", pooled=pooled) as session, session.transaction():
            row = session.execute("INSERT INTO agents (name) VALUES ('one') RETURNING id").fetchone()
            assert row
            session.execute(
                "INSERT INTO memories (agent_id, content, embedding) VALUES (%s, %s, %s)", (row[0], content, VECTOR)
            )

    def converge(self, plan: Plan | None = None, credentials: dict[str, Any] | None = None) -> list[str]:
        """Converge roles and grants as site.yml does."""
        given = plans.SECRETS["database_credentials"] | (credentials or {})
        expected = access_filter(json.loads(json.dumps(asdict((plan or self.plan).access))), given)
        return converge(conninfo({"host": self.server.host, "port": self.server.port, "user": "postgres"}), expected)


@contextmanager
def pooled(server: Cluster, plan: Plan) -> Iterator[int]:
    """Run PgBouncer in transaction mode, which looks passwords up on the server as on a host of ours."""
    rules = server.root / "hba.conf"
    rules.write_text(render(template("pgbouncer/hba.conf.j2"), "prod", plan=inputs.published(plan, None)))
    rules.chmod(0o644)
    databases = {"minion": f"host={server.host} port={server.port} auth_user=minion_pooler"}
    settings: dict[str, str | int] = {
        "unix_socket_dir": server.host,
        "auth_type": "hba",
        "auth_hba_file": str(rules),
        "auth_query": lookup.QUERY,
        "pool_mode": "transaction",
        "server_login_retry": 1,
        "default_pool_size": 2,
        "ignore_startup_parameters": "extra_float_digits,options",
    }
    with poolers.running(server.root, databases, {}, **settings) as found:
        yield found.port


@contextmanager
def place(settings: dict[str, str] | None = None, connections: int = 4) -> Iterator[Place]:
    """Run a server with the roles of a plan, its database `minion`, and a pooler; `connections` limits each tenant."""
    server = Cluster.create(PRELOAD | (settings or {}))
    try:
        (server.data / "pg_hba.conf").write_text(HBA)
        server.psql("SELECT pg_reload_conf()")
        major = int(server.psql("SHOW server_version_num")) // 10000
        base = plans.sample()
        plan = replace(
            base,
            server=replace(base.server, socket_directory=server.host, port=server.port, major=major),
            access=replace(base.access, tenant_limits=replace(base.access.tenant_limits, connections=connections)),
            backup=replace(base.backup, physical=False, dump_directory=str(server.root / "dumps"), processes=1),
            migrations=replace(base.migrations, directory=str(MIGRATIONS)),
        )
        run("install", "-d", "-o", "postgres", plan.backup.dump_directory)
        passwords = {role: each["password"] for role, each in plans.SECRETS["database_credentials"].items()}
        found = Place(server, plan, 0, passwords)
        found.converge()
        with pooled(server, plan) as port:
            found.pooler = port
            yield found
    finally:
        server.remove()
