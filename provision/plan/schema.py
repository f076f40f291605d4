"""What one host should be, as one immutable value: `Plan`. Pure; standard library only, because hosts read it too.

`build.build` makes it on the controller, `load.load` reads it from /etc/provision/plan.json on the host. It holds no
secret and nothing that a run changes (installed packages, what serves now): the same inputs give the same bytes, so a
second run writes nothing. What a host is like at the moment is `State`, which no file keeps.

Sizes end in `_mb` (MiB), times in `_s`, `_ms`, `_h` or `_days`; 0 is "no limit" or "never" where a field says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provision import addresses, quoting
from provision.errors import UsageError
from provision.plan import names
from provision.plan.cluster import PRIMARY, Cluster, Fleet, Member

SCHEMA = 2
"""Version of plan.json. Version 1 was the three files host.json, backup.json and maintenance.json."""
PATRONI = "patroni.service"


@dataclass(frozen=True)
class Host:
    """The machine as the probe found it, where it decides what is built."""

    os: str
    codename: str
    architecture: str
    """Debian's name of it: amd64, arm64."""
    cpus: int
    memory_mb: int
    container: bool
    systemd: bool


@dataclass(frozen=True)
class CitusSource:
    """Where apt finds the package of Citus, and nothing else."""

    uri: str
    suite: str
    component: str
    host: str
    """Of the URI: only `package` may come from it."""
    package: str


@dataclass(frozen=True)
class Source:
    """Where apt finds packages. `kind` is distribution, pgdg, mirror or bundle; the rest is "" where it does not apply.

    `hints` say what to set when apt cannot read a part: uri, suite, component, key.
    """

    kind: str
    uri: str = ""
    suite: str = ""
    component: str = ""
    key: str = ""
    pin: str = ""
    pinned: tuple[str, ...] = ()
    bundle_sha256: str = ""
    bundle_pgvector_file: str = ""
    hints: Mapping[str, str] | None = None
    citus: CitusSource | None = None
    """On a host of a fleet whose package of Citus comes from a source of its own."""


@dataclass(frozen=True)
class Setting:
    """One line of postgresql.conf with its reason; `restart` where a running server cannot take it."""

    name: str
    text: str
    line: str
    reason: str
    group: str
    restart: bool


@dataclass(frozen=True)
class Budget:
    """One part of the worst case of memory."""

    label: str
    mb: int
    reckoning: str


@dataclass(frozen=True)
class Ident:
    """One line of pg_ident.conf, columns as they are written."""

    map: str
    system: str
    role: str


@dataclass(frozen=True)
class Server:
    """PostgreSQL: its cluster VERSION/main, settings and access rules."""

    major: int
    port: int
    address: str
    """The IP address at which the host itself reaches the server; listen names are resolved by the probe."""
    client_address: str
    """Where clients reach it: how the controller reaches the host, or another address where the server listens."""
    listen_addresses: tuple[str, ...]
    locale: str
    data_directory: str
    configuration_directory: str
    socket_directory: str
    restart_allowed: bool
    settings: tuple[Setting, ...]
    overrides: Mapping[str, str]
    """What of `settings` the user set (postgresql_settings), as text."""
    budget: tuple[Budget, ...]
    max_connections: int
    network_connections: int
    """Most connections from the network to the server's port, which the firewall enforces; 0 is no limit."""
    address_connections: int
    """Most of them from one address; 0 is no limit."""
    kernel: Mapping[str, str]
    """sysctl values; empty in a container."""
    hba: tuple[str, ...]
    ident: tuple[Ident, ...]
    peer_users: tuple[str, ...]
    """System users whose psql uses the socket, without a password; that of others uses TCP. Empty: all of them."""
    archive_command: str
    """Empty: archiving is off."""
    archive_timeout_s: int
    patroni: bool
    """Patroni starts and stops the server; systemd does so elsewhere."""

    @property
    def data(self) -> Path:
        """The data directory."""
        return Path(self.data_directory)

    @property
    def configuration(self) -> Path:
        """The directory of postgresql.conf and pg_hba.conf."""
        return Path(self.configuration_directory)

    @property
    def programs(self) -> str:
        """The folder of the server's programs."""
        return f"/usr/lib/postgresql/{self.major}/bin"

    @property
    def unit(self) -> str:
        """The systemd unit that runs the server."""
        return PATRONI if self.patroni else self.own_unit

    @property
    def own_unit(self) -> str:
        """Debian's unit of the server, which is disabled where Patroni runs it."""
        return f"postgresql@{self.major}-main.service"

    @property
    def unit_file(self) -> str:
        """The drop-in with its sandbox of the unit that starts the server where Patroni does not."""
        return f"/etc/systemd/system/{self.own_unit}.d/50-provision.conf"

    @property
    def settings_file(self) -> str:
        """The file with our settings."""
        return f"{self.configuration_directory}/conf.d/50-provision.conf"

    def url(self, database: str, user: str = "postgres", *, port: int = 0, socket: str = "") -> str:
        """Return the libpq connection string of a database over the socket."""
        return quoting.conninfo(
            {"host": socket or self.socket_directory, "port": port or self.port, "dbname": database, "user": user}
        )


@dataclass(frozen=True)
class Pgvector:
    """pgvector's files. `version` is the one that the host will have; `sha256` and `url` are for a source build."""

    install_method: str
    version: str
    url: str
    sha256: str
    keep_build_packages: bool
    accept_advisories: tuple[str, ...]


@dataclass(frozen=True)
class Certificate:
    """One certificate on the host and its key. `purpose` is server, client, or peer for both; it has all `names`."""

    name: str
    certificate: str
    key: str
    purpose: str
    common_name: str
    names: tuple[str, ...]
    own_names: bool
    """Add the host's own names and addresses."""


@dataclass(frozen=True)
class Tls:
    """Certificates of the host. All paths are on the host, but for `client_ca`."""

    enabled: bool
    minimum_version: str
    name: str
    """How clients know this host: the name that its certificate must have."""
    provided: bool
    """The certificate is the user's own, not of our authority."""
    ca: str
    certificates: tuple[Certificate, ...]
    """Empty where TLS is off."""
    client_ca: str
    """The authority's certificate on the controller, for clients."""
    valid_days: int

    def certificate(self, name: str) -> Certificate:
        """Return one certificate: server, or pooler-client. Raises KeyError."""
        return {each.name: each for each in self.certificates}[name]


@dataclass(frozen=True)
class Role:
    """A login role of the database; `has_password` where the vault has one for it."""

    name: str
    kind: str
    connection_limit: int
    valid_until: str | None
    settings: Mapping[str, str]
    state: str
    has_password: bool


@dataclass(frozen=True)
class Tenant:
    """A tenant of the inventory: its schema and owner have its name, other roles names derived from it."""

    name: str
    connections: int
    """Most connections of its application role."""
    size_mb: int
    """Size that doctor warns beyond; 0 for none."""
    roles: tuple[Role, ...]


@dataclass(frozen=True)
class TenantLimits:
    """Limits of tenants that declare no others, and the settings of their roles."""

    connections: int
    size_mb: int
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Access:
    """Databases, login roles and extensions. `databases` is name -> owner, the main one first."""

    database: str
    owner: str
    databases: Mapping[str, str]
    roles: tuple[Role, ...]
    extensions: tuple[str, ...]
    guard: bool
    """Destructive commands ask for the database's name and a recent restore test (profile key)."""
    tenants: tuple[Tenant, ...]
    """Tenants of the inventory; the database may have others (`provision tenant list`)."""
    tenant_limits: TenantLimits

    @property
    def application(self) -> str:
        """The role that applications log in as."""
        return names.of_owner(self.owner, "app")

    @property
    def backup(self) -> str:
        """The role that reads everything, for dumps and metrics."""
        return names.of_owner(self.owner, "backup")

    @property
    def monitor(self) -> str:
        """The exporter's role."""
        return names.of_owner(self.owner, "monitor")

    @property
    def pooler(self) -> str:
        """The role as which the pooler looks up users."""
        return names.of_owner(self.owner, "pooler")


@dataclass(frozen=True)
class Pooler:
    """PgBouncer in front of the server on the same host."""

    enabled: bool
    port: int
    address: str
    listen_addresses: tuple[str, ...]
    networks: tuple[str, ...]
    """Networks that may log in, written out (no samenet), the loopback first."""
    socket_directory: str
    server: str
    """The server's address (then TLS with verify-full), its socket directory, or on a member `cluster.PRIMARY`."""
    version: str
    per_role_limits: bool
    """PgBouncer 1.23 and newer limit server connections by role; older ones by database alone."""
    prepared_statements: int
    """Statements prepared for clients on each server connection; 0 where PgBouncer cannot, or must not."""
    pools: Mapping[str, int]
    total: int
    lookups: int
    max_clients: int
    address_clients: int
    """Most clients from one address of the network, which the firewall enforces; 0: it does not guard the pooler."""
    address_rate: int
    """New connections per second from one address after a burst of address_clients; 0 is no limit."""
    clients: Mapping[str, int]
    """Most clients of each role, which add up to max_clients; none where PgBouncer is older than 1.24."""
    tenant_pool: int
    """Server connections of each role of a tenant that the inventory does not declare, as for per_role_limits."""
    open_files: int
    query_wait_timeout_s: int
    server_connect_timeout_s: int
    server_login_retry_s: int
    client_login_timeout_s: int
    restart_allowed: bool
    accept_advisories: tuple[str, ...]

    @property
    def follows(self) -> bool:
        """Whether the pooler leads to the primary of a cluster."""
        return self.server == PRIMARY

    @property
    def remote_networks(self) -> tuple[str, ...]:
        """Networks that may log in, without the loopback."""
        return tuple(each for each in self.networks if each not in addresses.LOOPBACK_NETWORKS)


@dataclass(frozen=True)
class Balancer:
    """HAProxy on a member of a cluster."""

    enabled: bool
    listen_addresses: tuple[str, ...]
    networks: tuple[str, ...]
    """Networks that may connect, written out (no samenet); empty where all may."""
    write_port: int
    read_port: int
    read_lag_mb: int
    statistics_port: int
    max_connections: int
    address: str
    """IPv4 address with prefix length that moves between the members, "" for none; `interface` carries it here."""
    interface: str
    router_id: int


@dataclass(frozen=True)
class Repository:
    """Where pgBackRest keeps backups. `kind` is local, host or s3; `host`, `port` and `inventory_name` for host.

    `number` is that of pgBackRest's options: 1 for repo1-*. Retentions are numbers of backups.
    """

    number: int
    kind: str
    path: str
    host: str
    port: int
    inventory_name: str
    user: str
    s3: Mapping[str, str]
    """bucket, endpoint, region, uri_style, port, ca_file; never the keys."""
    retention_full: int
    retention_diff: int

    @property
    def known_host(self) -> str:
        """The repository host's column of known_hosts."""
        return addresses.known_host(self.host, self.port)

    @property
    def place(self) -> str:
        """The repository's location, for messages."""
        if self.kind == "s3":
            return f"s3://{self.s3.get('bucket', '')}{self.path}"
        return f"{addresses.in_url(self.host) if self.kind == 'host' else self.kind}:{self.path}"


@dataclass(frozen=True)
class Backup:
    """Physical and logical backups and their restore test."""

    physical: bool
    logical: bool
    stanza: str
    repositories: tuple[Repository, ...]
    """The first, and the second of `backup_second_s3` where it is set. WAL and backups go to each."""
    compress_level: int
    processes: int
    archive_timeout_s: int
    queue_max_mb: int
    age_limit_h: float
    drill_age_limit_h: float
    dump_directory: str
    dump_keep: int
    dump_keep_days: int
    minimum_pgbackrest: str

    @property
    def repository(self) -> Repository:
        """The first repository."""
        return self.repositories[0]

    def chosen(self, number: int) -> tuple[Repository, ...]:
        """Return the repository of a number; 0 is all, in order. Raises UsageError."""
        found = tuple(each for each in self.repositories if number in (0, each.number))
        if not found:
            raise UsageError(
                "this host has no such repository",
                seen=str(number),
                allowed=", ".join(f"{each.number} ({each.place})" for each in self.repositories),
            )
        return found

    def named(self, text: str, repository: Repository) -> str:
        """Add the repository to a message, where there is more than one."""
        several = len(self.repositories) > 1
        return f"{text} (repository {repository.number}, {repository.place})" if several else text

    @property
    def remote(self) -> bool:
        """Whether backups leave this host."""
        return any(each.kind != "local" for each in self.repositories)


@dataclass(frozen=True)
class Monitoring:
    """Exporters, log rotation, the journal's limit."""

    exporters: bool
    address: str
    loopback: bool
    node_port: int
    postgres_port: int
    log_max_mb: int
    log_keep: int
    journal_max_mb: int
    runbooks: str


@dataclass(frozen=True)
class Retention:
    """Which rows of a table are due: `column` orders them, and an index serves it; 0 days keeps them for ever."""

    name: str
    table: str
    column: str
    due: str
    """SQL condition with {cutoff} for the moment before which a row is due."""
    days: int
    action: str
    """delete or archive."""


@dataclass(frozen=True)
class Maintenance:
    """Retention, expired sessions, bloated indexes."""

    retention: tuple[Retention, ...]
    cleanup: bool
    batch_rows: int
    lock_timeout_ms: int
    migration_wait_s: int
    bloat_percent: int
    bloat_mb: int
    age_limit_h: float


@dataclass(frozen=True)
class Migrations:
    """How migrations are applied."""

    directory: str
    lock_timeout_s: int


@dataclass(frozen=True)
class Timer:
    """A systemd timer: `schedule` is a calendar expression (systemd.time(7)), or "" for one that is off."""

    name: str
    schedule: str
    starts: str
    jitter_s: int
    role: str


@dataclass(frozen=True)
class Plan:
    """Everything that roles, templates and the command on the host may ask."""

    schema: int
    name: str
    """The host's name in the inventory."""
    address: str
    """How the controller, and so a client, reaches the host."""
    profile: str
    inventory: tuple[str, ...]
    """The inventories of the run, relative to the project where they lie in it."""
    host: Host
    source: Source
    server: Server
    pgvector: Pgvector
    tls: Tls
    access: Access
    pooler: Pooler
    balancer: Balancer
    backup: Backup
    monitoring: Monitoring
    maintenance: Maintenance
    migrations: Migrations
    timers: tuple[Timer, ...]
    cluster: Cluster | None
    """None on a single host."""
    warnings: tuple[str, ...]

    def site(self, tags: str = "", *, playbook: str = "site.yml", extra: str = "", every: bool = False) -> str:
        """Return the command, run on the controller, that converges this host or a part of it again; or `every` host.

        Every fix that names a playbook comes from here: inventory and limit are those of the run that built the plan.
        """
        words = ["ansible-playbook", playbook, self.inventories() if every else self.selection()]
        words += [f"--tags {tags}"] if tags else []
        return " ".join([*words, *([extra] if extra else [])])

    def selection(self) -> str:
        """Return the options that select this host on the controller: inventories and limit."""
        return f"{self.inventories()} --limit {self.name}".strip()

    def inventories(self) -> str:
        """Return the options that name the inventories of the run that built the plan."""
        return " ".join(f"-i {shlex.quote(path)}" for path in self.inventory)

    @property
    def firewall(self) -> bool:
        """Whether the host limits connections from the network, to the server or to the pooler."""
        return bool(self.server.network_connections or self.pooler.address_clients)

    @property
    def pooler_alone(self) -> bool:
        """Whether the host has a pooler and no server: a host of the group pooler."""
        return bool(self.cluster and self.cluster.pooler)

    @property
    def fleet(self) -> Fleet | None:
        """The fleet that the host's cluster is a group of, None outside fleets."""
        return self.cluster.fleet if self.cluster else None

    @property
    def worker(self) -> bool:
        """Whether the host is a worker of a fleet, whose only tables are those that Citus places there."""
        return bool(self.fleet and self.fleet.worker)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of the host's cluster, none on a single host."""
        return self.cluster.members if self.cluster and self.cluster.member else ()


@dataclass(frozen=True)
class State:
    """What the probe saw that a run changes: published beside the plan, never written to a file."""

    missing_packages: tuple[str, ...]
    """Packages of the roles of this play that are not installed."""
    missing_key_packages: tuple[str, ...]
    """Packages that carry the key of the package source, needed before it."""
    update_lists: bool
    """apt's lists are missing or older than an hour."""
    packages_interrupted: bool
    services_blocked: bool
    """An installation that was killed left its rule that packages start no service."""
    serving_port: int
    """Where the server serves now, which is not `server.port` while a new port waits for a restart."""
    serving: bool
    cluster: str
    """absent, half-made or present."""
    adopting: bool
    proved: bool
    """An earlier run proved this host: there is a database to ask in check mode."""
    old_layout: bool
    """The host has the files of schema version 1."""
    pgvector_built: bool
    """The host has this very source build."""
    huge_pages: int
    new_build_packages: tuple[str, ...]
    """Compiler and headers that this run, or an earlier one that failed, installs for a source build alone."""
    bundle_sha256: str
    """Checksum of the manifest of the bundle on the host, "" where there is none."""
    toolkit_current: bool
    """The host has the very command that this run would install."""
    upgrading: bool
    """upgrade.yml has yet to move the host from another major; the host keeps that plan until the new server starts."""
    database: bool
    """The play is for a database host, not for one beside them."""
