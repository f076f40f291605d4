"""Make the sections of a plan from typed variables, one function for each. Pure.

Variables have been validated: see plan.validate. `v` is every option of every role.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from provision import addresses, compatibility
from provision.plan import dns, fleet, hba, names, network, packages, ports, schema, tenants
from provision.plan.account import repository_user
from provision.plan.cluster import PRIMARY, Cluster
from provision.plan.context import SECOND_PATH, Context, repository_kind
from provision.tuning import Tuning, network_share, pools, vector

TLS = "/etc/provision/tls"
NODE_FILES = {"ca": f"{TLS}/ca.crt", "certificate": f"{TLS}/member.crt", "key": f"{TLS}/member.key"}
"""With which the nodes of a fleet log in to each other."""
SOCKETS = "/var/run/postgresql"
PGDG_KEY = "/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc"
MIRROR_KEY = "/etc/apt/keyrings/provision-postgresql.asc"
SEARCHING = ("owner", "write", "read")
"""Kinds of role whose sessions search vectors, and begin with the settings for it."""
TENANTS, TEMPORARY = ("write", "read"), "temp_file_limit"
OTHER_FILES = 200
"""Open files that PgBouncer needs beside one for each client and each server connection."""
WATCH_SCHEDULE = "*-*-* *:0/5"
"""The watch is the alarm, so it looks every five minutes."""


def server(
    v: Mapping[str, Any],
    probe: Mapping[str, Any],
    tuning: Tuning,
    tls: schema.Tls,
    access: schema.Access,
    backup: schema.Backup,
    share: network_share.NetworkShare,
    cluster: Cluster | None,
) -> schema.Server:
    """Make the section server: settings, pg_hba.conf and pg_ident.conf."""
    major = v["postgresql_version"]
    logins = [
        {"role": access.owner, "database": access.database, "users": v["postgresql_local_users"]},
        {"role": access.backup, "database": "all", "users": "^(root|postgres)$"},
        {"role": access.monitor, "database": "all", "users": "^prometheus$"},
        {"role": access.pooler, "database": "all", "users": "^postgres$"},
    ]
    others = [addresses.single(each.address) for each in cluster.members] if cluster else []
    poolers = [addresses.single(each.address) for each in cluster.poolers] if cluster else []
    rules = hba.rules(
        tls=tls.enabled,
        networks=v["postgresql_allowed_networks"],
        socket_logins=logins,
        certificate_logins=[{"role": access.pooler, "from": [*addresses.LOOPBACK_NETWORKS, *others, *poolers]}],
        members=others,
        poolers=poolers,
        nodes=[addresses.single(each.address) for each in cluster.fleet.others] if cluster and cluster.fleet else [],
        database=access.database,
        member_logins={cluster.replication_role: hba.REPLICATION, cluster.rewind_role: "postgres"} if cluster else {},
        extra=v["postgresql_extra_rules"],
    )
    settings = tuple(
        schema.Setting(each.name, each.text, each.line, each.reason, each.group, each.restart)
        for each in tuning.settings
    )
    listen, resolved = list(v["postgresql_listen_addresses"]), network.resolved(probe)
    if cluster and cluster.pooler:  # clients reach this host through its pooler alone
        listen, share = list(v["pgbouncer_listen_addresses"]), network_share.NetworkShare()
    if cluster and cluster.member and not addresses.covers(addresses.listened(listen, resolved), cluster.here.address):
        listen.append(cluster.here.address)
    return schema.Server(
        major=major,
        port=v["postgresql_port"],
        address=addresses.reached(listen, resolved),
        client_address=addresses.advertised(listen, tls.name, probe.get("addresses") or (), resolved),
        listen_addresses=tuple(dict.fromkeys(listen)),
        locale=v["postgresql_locale"],
        data_directory=f"/var/lib/postgresql/{major}/main",
        configuration_directory=f"/etc/postgresql/{major}/main",
        socket_directory=SOCKETS,
        restart_allowed=v["postgresql_restart_allowed"],
        settings=settings,
        overrides={each.name: each.text for each in settings if each.name in v["postgresql_settings"]},
        budget=tuple(schema.Budget(line.label, line.mb, line.reckoning) for line in tuning.budget),
        max_connections=int(tuning["max_connections"].value),
        network_connections=share.connections,
        address_connections=share.per_address,
        kernel={each.name: each.text for each in tuning.kernel},
        hba=tuple(str(rule) for rule in rules),
        ident=(
            *(hba.ident(str(each["role"]), f"/{each['users']}", str(each["role"])) for each in logins),
            *_member_logins(cluster),
            *(hba.ident(each["map"], each["system"], each["role"]) for each in v["postgresql_maps"]),
        ),
        peer_users=hba.peer_users(v["postgresql_local_users"], v["postgresql_extra_rules"], v["postgresql_maps"]),
        archive_command=f"pgbackrest --stanza={backup.stanza} archive-push %p" if backup.physical else "",
        archive_timeout_s=v["backup_archive_timeout_s"],
        patroni=bool(cluster and cluster.member),
    )


def _member_logins(cluster: Cluster | None) -> list[schema.Ident]:
    """Return the user name maps of a cluster: its members' certificates, and Patroni over the socket."""
    if not cluster:
        return []
    roles = (cluster.replication_role, cluster.rewind_role)
    return [
        *(hba.ident(hba.MEMBERS, cluster.common_name, role) for role in roles),
        hba.ident(cluster.replication_role, "postgres", cluster.replication_role),
        *([schema.Ident(hba.NODES, hba.ident("", cluster.common_name, "").system, "all")] if cluster.fleet else []),
    ]


def source(v: Mapping[str, Any], codename: str, context: Context) -> schema.Source:
    """Make the section source: where PostgreSQL's packages come from and, on a host of a fleet, that of Citus."""
    found = _source(v, codename, context)
    given = v["citus_source"]
    if fleet.group_of(v) == fleet.NONE or not given:
        return found
    package = packages.EXTENSIONS[fleet.EXTENSION].package.format(major=v["postgresql_version"])
    suite, component = given.get("suite") or codename, given.get("component") or "main"
    theirs = schema.CitusSource(str(given.get("uri")), suite, component, _host(str(given.get("uri"))), package)
    return replace(found, citus=theirs)


def _host(uri: str) -> str:
    """Return the host of a URI as apt's pins name it."""
    return urlsplit(uri).hostname or ""


def _source(v: Mapping[str, Any], codename: str, context: Context) -> schema.Source:
    """Return repository, suite, key, pins, and the variables to name in errors."""
    kind, major = v["postgresql_repository"], v["postgresql_version"]
    pinned = tuple(compatibility.pgdg_packages(major, codename))
    if kind == "mirror":
        suite = v["postgresql_mirror_suite"] or f"{codename}-pgdg"
        hints = {
            "uri": "postgresql_mirror_uri",
            "suite": "postgresql_mirror_suite",
            "component": "postgresql_mirror_component",
            "key": "postgresql_mirror_key to its publisher's current public key",
        }
        component = v["postgresql_mirror_component"]
        # By its suite, for the same host often serves the distribution's packages too.
        return schema.Source(
            kind, v["postgresql_mirror_uri"], suite, component, MIRROR_KEY, f"release {suite}", pinned, hints=hints
        )
    if kind == "pgdg":
        over = context.today >= compatibility.POSTGRESQL[major].end_of_life
        variable = "postgresql_pgdg_archive_uri" if over else "postgresql_pgdg_uri"
        uri = v[variable]
        hints = {
            "uri": variable,
            "suite": "postgresql_version to a major that it has for this release",
            "component": "postgresql_repository to mirror, and postgresql_mirror_component",
            "key": "postgresql_repository to mirror with PGDG's current key in postgresql_mirror_key, or upgrade "
            "postgresql-common on the host, which contains the key",
        }
        suite = f"{codename}-pgdg{'-archive' if over else ''}"
        pin = f'origin "{_host(uri)}"'
        return schema.Source(kind, uri, suite, "main", PGDG_KEY, pin, pinned, hints=hints)
    if kind == "bundle":
        hints = dict.fromkeys(("uri", "suite", "component", "key"), "postgresql_bundle to a newly made one")
        return schema.Source(
            kind,
            v["postgresql_bundle"],
            "bundle",
            "main",
            bundle_sha256=str(context.bundle.get("manifest_sha256", "")),
            bundle_pgvector_file=str(context.bundle.get("pgvector_file", "")),
            hints=hints,
        )
    return schema.Source(kind)


def tls(v: Mapping[str, Any], context: Context, cluster: Cluster | None) -> schema.Tls:
    """Make the section tls: the certificates of the server, of the pooler, and of a host of a cluster."""
    provided = bool(v["tls_provided_certificate"])
    own = [] if provided else [context.name, "localhost", "127.0.0.1", "::1"]
    server = schema.Certificate(
        "server",
        f"{TLS}/server.crt",
        f"{TLS}/server.key",
        "server",
        "" if provided else context.name[:64],  # X.520: a common name has 64 characters at most; names count
        dns.certificate_names(
            [context.address, *_member_address(cluster, provided), *_moving(v, cluster), *v["tls_extra_names"], *own]
        ),
        own_names=not provided,
    )
    role = names.of_owner(v["database_owner"], "pooler")
    pooler = schema.Certificate(
        "pooler-client", f"{TLS}/pooler-client.crt", f"{TLS}/pooler-client.key", "client", role, (), own_names=False
    )
    return schema.Tls(
        enabled=v["tls_enabled"],
        minimum_version=v["postgresql_tls_minimum_version"],
        name=dns.certificate_names([context.address])[0],
        provided=provided,
        ca=f"{TLS}/ca.crt",
        certificates=(
            server,
            *([pooler] if context.database or context.pooler else []),
            *_member_certificates(cluster, context),
        )
        if v["tls_enabled"]
        else (),
        client_ca=v["tls_provided_ca"] or f"{v['tls_directory']}/ca.crt",
        valid_days=v["tls_valid_days"],
    )


def _member_address(cluster: Cluster | None, provided: bool) -> list[str]:
    """Return the address that the cluster's hosts use; a certificate of the user's own need not have it."""
    if provided or not cluster:
        return []
    return [cluster.hosts[name] for name in (cluster.member, cluster.pooler) if name]


def _moving(v: Mapping[str, Any], cluster: Cluster | None) -> list[str]:
    """Return the address that moves between the members, by which clients reach the server through HAProxy."""
    enabled = v["balancer_enabled"] and cluster and cluster.member and not v["tls_provided_certificate"]
    return [v["balancer_address"].partition("/")[0]] if enabled and v["balancer_address"] else []


def _member_certificates(cluster: Cluster | None, context: Context) -> list[schema.Certificate]:
    """Return the certificates of a host of a cluster, always our authority's.

    One is for etcd's clients, which Patroni's REST API accepts for reading too. The other is for etcd, Patroni and
    replication: a host with a pooler alone must not have it.
    """
    if not cluster:
        return []
    listed = dns.certificate_names([cluster.hosts[context.name], context.name, "localhost", "127.0.0.1"])
    # Without a common name: etcd's gateway refuses a request without a token if the certificate has one.
    client = schema.Certificate(
        "etcd-client", f"{TLS}/etcd-client.crt", f"{TLS}/etcd-client.key", "client", "", listed, own_names=False
    )
    if cluster.pooler:
        return [client]
    return [
        schema.Certificate(
            "member", f"{TLS}/member.crt", f"{TLS}/member.key", "peer", cluster.common_name, listed, own_names=False
        ),
        client,
    ]


def roles(v: Mapping[str, Any], version: str = "") -> list[dict[str, Any]]:
    """Return all login roles; those of ours that search vectors begin with the settings for it."""
    search = {setting.name: setting.text for setting in vector.role_settings(version)} if version else {}
    ours = [
        {**each, "settings": {**search, **(each.get("settings") or {})}} if each["kind"] in SEARCHING else each
        for each in v["database_roles"]
    ]
    declared = [*ours, *(_bounded(each, v["database_timeouts"]) for each in v["database_extra_roles"])]
    return [*declared, *_second_logins(declared, v["database_credentials"])]


def _bounded(role: dict[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Limit the temporary files of your own role, unless it has a limit: only an owner needs more, for its indexes."""
    if role["kind"] not in TENANTS or TEMPORARY not in limits:
        return role
    return {**role, "settings": {TEMPORARY: limits[TEMPORARY], **(role.get("settings") or {})}}


def _second_logins(declared: list[dict[str, Any]], credentials: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a member of each role that the vault has two logins for; its sessions act as that role."""
    taken = {each["name"] for each in declared}
    for each in declared:
        name = names.second_login(each["name"])
        if each.get("state", "present") == "present" and name in credentials and name not in taken:
            settings = {**(each.get("settings") or {}), "role": each["name"]}
            yield {**each, "name": name, "kind": "second", "settings": settings}


def access(v: Mapping[str, Any], profile: Mapping[str, Any], version: str, limits: Mapping[str, int]) -> schema.Access:
    """Make the section access: databases, login roles, extensions and tenants."""
    given = tenants.limits(profile, v["database_timeouts"], version)
    return schema.Access(
        database=v["database_name"],
        owner=v["database_owner"],
        databases={v["database_name"]: v["database_owner"], **v["database_extra_databases"]},
        roles=tuple(
            schema.Role(
                name=each["name"],
                kind=each["kind"],
                connection_limit=limits.get(each["name"], int(each.get("connection_limit", -1))),
                valid_until=each.get("valid_until"),
                settings={str(key): str(value) for key, value in (each.get("settings") or {}).items()},
                state=each.get("state", "present"),
                has_password=each["name"] in v["database_credentials"],
            )
            for each in roles(v, version)
        ),
        extensions=tuple(v["database_extensions"]),
        guard=bool(profile["database"]["guard"]),
        tenants=tenants.declared(v, given),
        tenant_limits=given,
    )


def pooler(
    v: Mapping[str, Any], probe: Mapping[str, Any], fitted: pools.Pools, server: schema.Server, tls: schema.Tls,
    cluster: Cluster | None, access: schema.Access,
) -> schema.Pooler:  # fmt: skip
    """Make the section pooler, as far as the version of PgBouncer allows."""
    version = compatibility.pgbouncer_version(probe["package_versions"]["pgbouncer"], probe["distribution_codename"])
    key = compatibility.version_key(version)
    # A certificate of the user's own need not name the loopback: there the socket is the way, as it is without TLS.
    over_tls = tls.enabled and not tls.provided and server.address == addresses.LOOPBACK_IPV4
    # All poolers of a cluster lead to one primary, so each has its part of the pools.
    follows = bool(cluster and (cluster.member or cluster.pooler))
    poolers = len(cluster.followers) if cluster and follows else 1
    sizes = {role: max(1, size // poolers) for role, size in fitted.sizes.items()}
    lookups = max(1, pools.LOOKUPS // poolers)
    return schema.Pooler(
        enabled=probe["systemd"],
        port=v["pgbouncer_port"],
        address=addresses.reached(v["pgbouncer_listen_addresses"], network.resolved(probe)),
        listen_addresses=tuple(dict.fromkeys(v["pgbouncer_listen_addresses"])),
        networks=_networks(v["pgbouncer_allowed_networks"], probe),
        socket_directory=SOCKETS,
        server=PRIMARY if follows else server.address if over_tls else SOCKETS,
        version=version,
        per_role_limits=key >= compatibility.version_key("1.23"),
        prepared_statements=v["pgbouncer_max_prepared_statements"] if key >= compatibility.version_key("1.21") else 0,
        pools=sizes,
        total=sum(sizes.values()) + lookups,
        lookups=lookups,
        max_clients=v["pgbouncer_max_clients"],
        address_clients=network.pooler_share(v, probe),
        address_rate=v["pgbouncer_address_rate"],
        clients=pools.clients(v["pgbouncer_max_clients"], fitted.sizes)
        if key >= compatibility.version_key("1.24")
        else {},
        tenant_pool=tenants.pool(access.tenant_limits),
        open_files=v["pgbouncer_max_clients"] + fitted.total + OTHER_FILES,
        query_wait_timeout_s=v["pgbouncer_query_wait_timeout_s"],
        server_connect_timeout_s=v["pgbouncer_server_connect_timeout_s"],
        server_login_retry_s=v["pgbouncer_server_login_retry_s"],
        client_login_timeout_s=v["pgbouncer_client_login_timeout_s"],
        restart_allowed=v["pgbouncer_restart_allowed"],
        accept_advisories=tuple(v["pgbouncer_accept_advisories"]),
    )


def backup(v: Mapping[str, Any], probe: Mapping[str, Any]) -> schema.Backup:
    """Make the section backup."""
    cpus, queue = probe["cpus"], v["backup_queue_max_mb"]
    return schema.Backup(
        physical=v["backup_physical"],
        logical=v["backup_logical"],
        stanza=v["backup_stanza"],
        repositories=tuple(_repositories(v)),
        compress_level=v["backup_compress_level"],
        processes=v["backup_processes"] or min(max(cpus // 2, 2), cpus),
        archive_timeout_s=v["backup_archive_timeout_s"],
        queue_max_mb=max((probe.get("disk_mb") or 0) // 5, 1024) if queue == -1 else queue,
        age_limit_h=v["backup_age_limit_h"],
        drill_age_limit_h=v["backup_drill_age_limit_h"],
        dump_directory=v["backup_dump_directory"],
        dump_keep=v["backup_dump_keep"],
        dump_keep_days=v["backup_dump_keep_days"],
        minimum_pgbackrest=compatibility.minimum_pgbackrest(
            v["postgresql_version"], remote=repository_kind(v) == "host"
        ),
    )


def _repositories(v: Mapping[str, Any]) -> Iterator[schema.Repository]:
    kind, keep = repository_kind(v), (v["backup_retention_full"], v["backup_retention_diff"])
    yield schema.Repository(
        1,
        kind,
        v["backup_repository_path"],
        v["backup_repository_host"] if kind == "host" else "",
        v["backup_repository_port"] if kind == "host" else 0,
        v["backup_repository_inventory_name"] if kind == "host" else "",
        repository_user(v["backup_stanza"]) if kind == "host" else "",
        _bucket(v["backup_s3"]),
        *keep,
    )
    if second := v["backup_second_s3"]:
        full, diff = second.get("retention_full") or keep[0], second.get("retention_diff") or keep[1]
        yield schema.Repository(2, "s3", second.get("path") or SECOND_PATH, "", 0, "", "", _bucket(second), full, diff)


def _bucket(s3: Mapping[str, Any]) -> dict[str, str]:
    """Return what the plan keeps of a bucket: no secrets."""
    kept = {key: str(s3[key]) for key in ("bucket", "endpoint", "region", "port", "ca_file") if s3.get(key)}
    return {"uri_style": str(s3.get("uri_style") or "host"), **kept} if s3 else {}


def monitoring(v: Mapping[str, Any]) -> schema.Monitoring:
    """Make the section monitoring."""
    where = v["monitoring_listen_address"]
    return schema.Monitoring(
        exporters=v["monitoring_exporters"],
        address=addresses.in_url(where),
        loopback=where in ports.LOOPBACKS,
        node_port=v["monitoring_node_port"],
        postgres_port=v["monitoring_postgres_port"],
        log_max_mb=v["monitoring_log_max_mb"],
        log_keep=v["monitoring_log_keep"],
        journal_max_mb=v["monitoring_journal_max_mb"],
        runbooks=v["monitoring_runbooks"],
    )


def maintenance(v: Mapping[str, Any]) -> schema.Maintenance:
    """Make the section maintenance: built-in retention rules first, then the user's own."""
    # sessions.updated_at has no index on purpose: the partial index of closed sessions finds them by created_at.
    closed = "status = 'closed' AND updated_at < {cutoff}"
    rules = [
        schema.Retention("activities", "activities", "created_at", "created_at < {cutoff}", 0, "delete"),
        schema.Retention("metrics", "metrics", "timestamp", "timestamp < {cutoff}", 0, "delete"),
        schema.Retention("closed sessions", "sessions", "created_at", closed, 0, "archive"),
    ]
    days = [v["maintenance_activities_days"], v["maintenance_metrics_days"], v["maintenance_sessions_days"]]
    own = [
        schema.Retention(
            each["table"], each["table"], each["column"], f"{each['column']} < {{cutoff}}", each["days"], "delete"
        )
        for each in v["maintenance_extra_retention"]
    ]
    return schema.Maintenance(
        retention=(*(replace(rule, days=number) for rule, number in zip(rules, days, strict=True)), *own),
        cleanup=v["maintenance_cleanup"],
        batch_rows=v["maintenance_batch_rows"],
        lock_timeout_ms=v["maintenance_lock_timeout_ms"],
        migration_wait_s=v["maintenance_migration_wait_s"],
        bloat_percent=v["maintenance_bloat_percent"],
        bloat_mb=v["maintenance_bloat_mb"],
        age_limit_h=v["maintenance_age_limit_h"],
    )


def balancer(
    v: Mapping[str, Any], probe: Mapping[str, Any], server: schema.Server, cluster: Cluster | None
) -> schema.Balancer:
    """Make the section balancer; only members of a cluster run it."""
    enabled = bool(v["balancer_enabled"] and cluster and cluster.member)
    interfaces = probe.get("interfaces") or {}
    return schema.Balancer(
        enabled=enabled,
        listen_addresses=server.listen_addresses,
        networks=_sources(v["postgresql_allowed_networks"], probe, cluster) if enabled and cluster else (),
        write_port=v["balancer_write_port"],
        read_port=v["balancer_read_port"],
        read_lag_mb=v["balancer_read_lag_mb"],
        statistics_port=v["balancer_statistics_port"],
        max_connections=2 * server.max_connections,
        address=v["balancer_address"] if enabled else "",
        interface=interfaces.get(cluster.here.address, "") if enabled and cluster else "",
        router_id=v["balancer_router_id"],
    )


def _sources(allowed: Sequence[str], probe: Mapping[str, Any], cluster: Cluster) -> tuple[str, ...]:
    """Return what pg_hba.conf admits: the server sees HAProxy's address instead of the client's."""
    hosts = [each.address for each in cluster.members] + [each.address for each in cluster.poolers]
    return () if "all" in allowed else tuple(dict.fromkeys([*_networks(allowed, probe), *map(addresses.single, hosts)]))


def _networks(allowed: Sequence[str], probe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the loopback and the allowed networks, written out."""
    words = {"samenet": probe["networks"], "samehost": []}
    networks = [each for name in allowed for each in words.get(name, [name])]
    return tuple(dict.fromkeys([*addresses.LOOPBACK_NETWORKS, *networks]))


def timers(v: Mapping[str, Any]) -> Iterable[schema.Timer]:
    """Return every timer of backups and maintenance; one without a schedule is switched off on the host."""
    for kind in ("full", "diff", "incr", "logical"):
        on = v["backup_logical"] if kind == "logical" else v["backup_physical"]
        schedule = v[f"backup_{kind}_schedule"] if on else ""
        yield schema.Timer(
            f"provision-backup-{kind}", schedule, f"provision-backup@{kind}", v["backup_jitter_s"], "backup"
        )
    drill = v["backup_drill_schedule"] if v["backup_physical"] or v["backup_logical"] else ""
    yield schema.Timer("provision-drill", drill, "provision-drill", v["backup_jitter_s"], "backup")
    watch = WATCH_SCHEDULE if v["backup_physical"] or v["backup_age_limit_h"] else ""
    yield schema.Timer("provision-backup-watch", watch, "provision-backup-watch", 0, "backup")
    for job in ("sessions", "retention", "index"):
        schedule = v[f"maintenance_{job}_schedule"]
        if job == "sessions" and not v["maintenance_cleanup"]:
            schedule = ""
        yield schema.Timer(
            f"provision-maintain-{job}",
            schedule,
            f"provision-maintain@{job}",
            v["maintenance_jitter_s"],
            "maintenance",
        )
