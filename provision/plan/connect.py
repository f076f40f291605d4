"""Connection parameters of a host's database, in the formats that clients read. Pure, standard library only.

`connection` takes them from a plan. Applications use the pooler where their role has a pool; migrations, dumps and
LISTEN need the direct connection. The password is a parameter, because a plan holds no secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from provision import addresses, quoting
from provision.errors import UsageError
from provision.plan.cluster import Cluster
from provision.plan.schema import Plan

VERIFIED = "verify-full"
_BARE = re.compile(r"[A-Za-z0-9_./:@%+,=~-]*")
"""Values that a shell and every reader of .env files take without quotes."""


@dataclass(frozen=True)
class Connection:
    """One role at one host. `pool_port` is 0 without a pool of the role; `ca` is "" without TLS.

    `members` are address, port and pool port of every host of a cluster, 0 for a port that clients are not sent to: URL
    and keywords list them, so that clients of libpq find another one when theirs is gone. The variables name one host,
    because many drivers know only one.
    """

    name: str
    role: str
    database: str
    host: str
    port: int
    pool_port: int
    ca: str
    prepared_statements: bool
    """The driver's prepared statements work on the port that applications use."""
    notes: tuple[str, ...]
    password: str = field(default="", repr=False)
    members: tuple[tuple[str, int, int], ...] = ()

    @property
    def application_port(self) -> int:
        """The pooler's port, or the server's where the role has no pool."""
        return self.pool_port or self.port

    def url(self, port: int = 0) -> str:
        """Return the URL of the application's port, or of another one."""
        user = quoting.url(self.role) + (f":{quoting.url(self.password)}" if self.password else "")
        place = ",".join(addresses.endpoint(*each) for each in self._places(port))
        query = "&".join(
            f"{key}={quoting.url_path(value)}" for key, value in {**self._tls(), **self._any(port)}.items()
        )
        return f"postgresql://{user}@{place}/{quoting.url(self.database)}{f'?{query}' if query else ''}"

    def conninfo(self) -> str:
        """Return libpq's keywords and values."""
        secret = {"password": self.password} if self.password else {}
        hosts, ports = zip(*self._places(), strict=True)
        place = {"host": ",".join(hosts), "port": ",".join(map(str, ports)), "dbname": self.database, "user": self.role}
        return quoting.conninfo({**place, **secret, **self._tls(), **self._any()})

    def env(self) -> str:
        """Return the lines of a .env file, which a shell, systemd, docker compose, python-dotenv and node can read."""
        secret = {"PGPASSWORD": self.password} if self.password else {}
        values = {
            "DATABASE_URL": self.url(),
            "DIRECT_DATABASE_URL": self.url(self.port),
            "PGHOST": self.host,
            "PGPORT": str(self.application_port),
            "PGDATABASE": self.database,
            "PGUSER": self.role,
            **secret,
            **({"PGSSLMODE": VERIFIED, "PGSSLROOTCERT": self.ca} if self.ca else {}),
        }
        return "".join(f"{name}={_env(value)}\n" for name, value in values.items())

    def pgpass(self) -> str:
        """Return the lines of libpq's password file, one for each port; "" without a password."""
        if not self.password:
            return ""
        ports = dict.fromkeys((self.application_port, self.port))
        words = [self.host, "", self.database, self.role, self.password]
        lines = [[*words[:1], str(port), *words[2:]] for port in ports]
        return "".join(":".join(re.sub(r"([\\:])", r"\\\1", word) for word in line) + "\n" for line in lines)

    def service(self) -> str:
        """Return the sections of libpq's service file: the database's name, and NAME-direct."""
        sections = [(self.database, self.application_port), (f"{self.database}-direct", self.port)]
        return "\n".join(
            "".join(
                [f"[{name}]\n", *(f"{key}={value}\n" for key, value in {**self._place(port), **self._tls()}.items())]
            )
            for name, port in sections
        )

    def facts(self) -> dict[str, object]:
        """Return everything as plain values, for JSON."""
        return {
            "name": self.name,
            "role": self.role,
            "database": self.database,
            "host": self.host,
            "port": self.port,
            "pool_port": self.pool_port or None,
            "sslmode": VERIFIED if self.ca else None,
            "ca": self.ca or None,
            "password": self.password or None,
            "url": self.url(),
            "direct_url": self.url(self.port),
            "conninfo": self.conninfo(),
            "env": self.env(),
            "pgpass": self.pgpass(),
            "service": self.service(),
            "prepared_statements": self.prepared_statements,
            "notes": list(self.notes),
        }

    def _place(self, port: int = 0) -> dict[str, object]:
        place = {"host": self.host, "port": port or self.application_port}
        return {**place, "dbname": self.database, "user": self.role}

    def _places(self, port: int = 0) -> list[tuple[str, int]]:
        """Return address and port of each host that a client may try."""
        direct = bool(port and port != self.pool_port) or not self.pool_port
        every = [(host, own if direct else pool) for host, own, pool in self.members]
        found = [(host, number) for host, number in every if number]
        return found or [(self.host, port or self.application_port)]

    def _any(self, port: int = 0) -> dict[str, str]:
        """Return what a client needs that may try several hosts: only the primary accepts writes directly."""
        if not self.members:
            return {}
        direct = bool(port and port != self.pool_port) or not self.pool_port
        return {"connect_timeout": "3", **({"target_session_attrs": "read-write"} if direct else {})}

    def _tls(self) -> dict[str, str]:
        return {"sslmode": VERIFIED, "sslrootcert": self.ca} if self.ca else {}


def connection(
    plan: Plan, role: str = "", *, database: str = "", ca: str = "", host: str = "", password: str = "",
    tenant: bool = False,
) -> Connection:  # fmt: skip
    """Return how a role reaches a database of a host.

    Defaults: the application's role, the main database, the controller's copy of the CA, and the address at which
    clients reach the host. `tenant` is for a role of a tenant that the inventory does not declare. Raises UsageError
    for a role or a database that the plan does not have.
    """
    role, database = role or plan.access.application, database or plan.access.database
    known = {each.name: each for each in plan.access.roles if each.state == "present" and each.has_password}
    of_tenants = {each.name for listed in plan.access.tenants for each in listed.roles if each.has_password}
    if role not in known and role not in of_tenants and not tenant:
        raise UsageError(
            "no such login role",
            where=plan.name,
            seen=role,
            allowed=", ".join(known) or "a role with a password in database_credentials",
            run="add the role to database_extra_roles and its password to database_credentials, then run site.yml",
        )
    if database not in plan.access.databases:
        raise UsageError(
            "no such database",
            where=plan.name,
            seen=database,
            allowed=", ".join(plan.access.databases),
            run="add it to database_extra_databases, then run site.yml",
        )
    served = tenant or role in of_tenants or role in plan.pooler.pools
    pooled = plan.pooler.enabled and served and quoting.is_pgbouncer_key(database)
    return Connection(
        name=plan.name,
        role=role,
        database=database,
        host=host or plan.server.client_address,
        port=plan.server.port,
        pool_port=plan.pooler.port if pooled else 0,
        ca=(ca or plan.tls.client_ca) if plan.tls.enabled else "",
        prepared_statements=not pooled or plan.pooler.prepared_statements > 0,
        notes=tuple(_notes(plan, role, pooled=pooled)),
        password=password,
        members=() if host or not plan.cluster else tuple(_members(plan, plan.cluster)),
    )


def _members(plan: Plan, cluster: Cluster) -> Iterator[tuple[str, int, int]]:
    """Yield the places of a member's URLs; clients of a host with a pooler alone use this pooler."""
    if plan.pooler_alone:
        yield plan.server.client_address, 0, plan.pooler.port
    for member in cluster.members if plan.pooler.follows else ():
        yield member.address, member.port, 0 if plan.pooler_alone else member.pooler_port
    for pooler in cluster.poolers if plan.members else ():
        yield pooler.address, 0, pooler.port


def _notes(plan: Plan, role: str, *, pooled: bool) -> list[str]:
    """Return what a client must know beside the parameters."""
    server, pooler, found = plan.server, plan.pooler, []
    if server.client_address in addresses.LOOPBACKS:
        found.append(
            f"{plan.name} accepts connections from itself only: for other hosts set postgresql_listen_addresses and "
            "postgresql_allowed_networks, then run site.yml"
        )
    elif pooled and all(each in (*addresses.LOOPBACKS, addresses.LOCALHOST) for each in pooler.listen_addresses):
        found.append(
            f"the pooler of {plan.name} accepts connections from the host itself only: set pgbouncer_listen_addresses, "
            "then run site.yml"
        )
    if not pooled:
        found.append(
            f"role {role} has no pool at {plan.name}: each connection is a server process; pgbouncer_pools adds a pool"
        )
    elif not pooler.prepared_statements:
        found.append(
            f"PgBouncer {pooler.version} has no prepared statements for clients: turn them off in the driver "
            "(docs/connect-an-application.md)"
        )
    if not plan.tls.enabled:
        found.append("connections are not encrypted (profile without TLS): for development only")
    return found


def _env(value: str) -> str:
    """Quote a value of a .env file in single quotes, without escapes, which every reader accepts. Raises UsageError."""
    if _BARE.fullmatch(value):
        return value
    if "'" in value or "\n" in value:
        raise UsageError(
            "the .env file cannot hold this value",
            seen="a single quote or a line break in the password, a name or a path",
            allowed="values without them",
            run="use --show url or --show pgpass, which escape them",
        )
    return f"'{value}'"


FILES: Mapping[str, str] = {"env": ".env", "pgpass": "pgpass", "service": "pg_service.conf", "ca": "ca.crt"}
"""Names of the files that `provision connect --write` makes."""
