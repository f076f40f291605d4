"""Make the plan of a host from variables, a probe and a profile. Pure: the same inputs give the same plan.

`build` reports every problem at once and gives no plan then. Variables come typed from `plan.variables`, with the
roles' defaults filled in; the probe is what the module host_plan prints; the profile is a file of profiles/.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from provision import compatibility
from provision.distributions import ARCHITECTURES
from provision.errors import UsageError
from provision.plan import hba, packages, schema, validate
from provision.tuning import Host as Machine
from provision.tuning import Tuning, pools, tune, vector
from provision.tuning.model import Choices

LOOPBACK = ("127.0.0.1/32", "::1/128")
ANY_IPV4, ANY_IPV6 = {"*", "localhost", "127.0.0.1", "0.0.0.0"}, {"::", "::1"}  # noqa: S104 - compared, not bound
TLS = "/etc/provision/tls"
SOCKETS = "/var/run/postgresql"
MIGRATIONS = "/usr/local/share/provision/migrations"
BUNDLE = "/var/cache/provision/bundle"
PGDG_KEY = "/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc"
MIRROR_KEY = "/etc/apt/keyrings/provision-postgresql.asc"
LISTS_FRESH_S = 3600
REPOSITORY_USER = "pgbackrest"
SEARCHING = ("owner", "write", "read")
"""Kinds of role whose sessions search vectors, and begin with the settings for it."""
OTHER_FILES = 200
"""Open files that PgBouncer needs beside one for each client and each server connection."""
WATCH_SCHEDULE = "*-*-* *:0/5"
"""The watch is the alarm, so it looks every five minutes."""


@dataclass(frozen=True)
class Context:
    """What is known of the run beside variables: the host's names, inventories, and what the controller read.

    `roles` are those of the play, whose packages are installed. `bundle` is what `controller.bundle.verify` found (and
    `problem`), `provided` and `plain_vaults` name files of the controller that must not be used as they are. `database`
    is false for a host beside the databases, `toolkit_sha256` the checksum of the packed command.
    """

    name: str
    address: str
    inventory: tuple[str, ...]
    roles: tuple[str, ...]
    today: datetime.date
    bundle: Mapping[str, Any] = field(default_factory=dict)
    provided: tuple[str, ...] = ()
    plain_vaults: tuple[str, ...] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    database: bool = True
    toolkit_sha256: str = ""


@dataclass(frozen=True)
class Built:
    """The plan and the host's state, or the problems; `notices` are warnings that the plan does not keep."""

    plan: schema.Plan | None
    state: schema.State | None
    problems: tuple[str, ...]
    notices: tuple[str, ...]


Judge = Callable[
    [Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], "Context", str],
    validate.Verdict,
]


def build(
    v: Mapping[str, Any],
    probe: Mapping[str, Any],
    profile: Mapping[str, Any],
    context: Context,
    *,
    judge: Judge = validate.judge,
) -> Built:
    """Build and judge. `v` is every option of every role, typed; `judge` is one of validate's, by the kind of play."""
    if v["postgresql_version"] not in compatibility.POSTGRESQL:
        allowed = ", ".join(map(str, compatibility.POSTGRESQL))
        return Built(None, None, (f"postgresql_version is {v['postgresql_version']}: expected {allowed}",), ())
    version = _pgvector_version(v, probe, context)
    verdict = judge(v, probe, profile, context, version)
    try:
        tuning = _tuning(v, probe, profile, version or list(compatibility.PGVECTOR)[-1])
    except UsageError as error:
        where = f"{error.where}: " if error.where else ""
        problem = f"{where}{error.what}: {error.seen}; allowed: {error.allowed}"
        return Built(None, None, (*verdict.refusals, problem), ())
    connections = str(tuning["max_connections"].value)
    if not connections.isdigit():
        problem = f"postgresql_settings.max_connections is {connections!r}: expected an integer"
        return Built(None, None, (*verdict.refusals, problem), ())
    fitted = pools.fit(
        int(connections),
        _requested_pools(v, profile),
        v["pgbouncer_pools"],
        pools.limits(_roles(v)),
    )
    refusals = (*verdict.refusals, *fitted.refusals)
    if refusals and judge is not validate.judge_nothing:
        return Built(None, None, refusals, ())
    warnings = (*verdict.warnings, *fitted.warnings, *tuning.warnings)
    plan = _plan(v, probe, profile, context, tuning, fitted, version, warnings)
    return Built(plan, _state(plan, probe, context, verdict), (), (*warnings, *verdict.notices))


def _plan(
    v: Mapping[str, Any],
    probe: Mapping[str, Any],
    profile: Mapping[str, Any],
    context: Context,
    tuning: Tuning,
    fitted: pools.Pools,
    version: str,
    warnings: tuple[str, ...],
) -> schema.Plan:
    host = schema.Host(
        os=probe["os"],
        codename=probe["distribution_codename"],
        architecture=ARCHITECTURES.get(probe["architecture"], probe["architecture"]),
        cpus=probe["cpus"],
        memory_mb=probe["memory_mb"],
        container=probe["container"],
        systemd=probe["systemd"],
    )
    tls = _tls(v, context)
    access = _access(v, profile, version)
    backup = _backup(v, probe)
    server = _server(v, tuning, tls, access, backup)
    return schema.Plan(
        schema=schema.SCHEMA,
        name=context.name,
        address=context.address,
        profile=v["plan_profile_name"],
        inventory=context.inventory,
        host=host,
        source=_source(v, host, context),
        server=server,
        pgvector=schema.Pgvector(
            v["pgvector_install_method"],
            version,
            v["pgvector_source_url"],
            v["pgvector_source_sha256"],
            v["pgvector_keep_build_packages"],
            tuple(v["pgvector_accept_advisories"]),
        ),
        tls=tls,
        access=access,
        pooler=_pooler(v, probe, fitted, server, tls),
        backup=backup,
        monitoring=_monitoring(v),
        maintenance=_maintenance(v),
        migrations=schema.Migrations(MIGRATIONS, v["migrations_lock_timeout"]),
        timers=tuple(_timers(v)),
        warnings=warnings,
    )


def _pgvector_version(v: Mapping[str, Any], probe: Mapping[str, Any], context: Context) -> str:
    """Tell which pgvector a host will have: its build, the distribution's package, or PGDG's, which is the newest."""
    if v["pgvector_install_method"] == "source":
        return str(v["pgvector_version"])
    if v["postgresql_repository"] == "distribution":
        return validate.shipped(probe["distribution_codename"])[1]
    if v["postgresql_repository"] == "bundle":
        return str(context.bundle.get("pgvector_version", ""))
    return list(compatibility.PGVECTOR)[-1]


def _tuning(v: Mapping[str, Any], probe: Mapping[str, Any], profile: Mapping[str, Any], version: str) -> Tuning:
    known = {each.name: probe[each.name] for each in fields(Machine) if each.name in probe}
    storage = {} if v["postgresql_storage"] == "auto" else {"storage": v["postgresql_storage"]}
    return tune(
        Machine(**{**known, **storage}),
        v["plan_profile_name"],
        postgresql_major=v["postgresql_version"],
        pgvector_version=version,
        accepted=v["pgvector_accept_advisories"],
        vectors=v["postgresql_expected_vectors"],
        dimensions=v["postgresql_vector_dimensions"],
        preload=[*v["postgresql_preload_libraries"], *packages.preload(v["database_extensions"])],
        choices=Choices.of(profile["postgresql"]),
        overrides=v["postgresql_settings"],
    )


def address(listen: Sequence[str]) -> str:
    """Give the address at which a service that listens so is reached on the host itself."""
    if ANY_IPV4 & set(listen):
        return "127.0.0.1"
    return "::1" if ANY_IPV6 & set(listen) else listen[0]


def _server(
    v: Mapping[str, Any], tuning: Tuning, tls: schema.Tls, access: schema.Access, backup: schema.Backup
) -> schema.Server:
    major = v["postgresql_version"]
    logins = [
        {"role": access.owner, "database": access.database, "users": v["postgresql_local_users"]},
        {"role": access.backup, "database": "all", "users": "^(root|postgres)$"},
        {"role": access.monitor, "database": "all", "users": "^prometheus$"},
        {"role": access.pooler, "database": "all", "users": "^postgres$"},
    ]
    rules = hba.rules(
        tls=tls.enabled,
        networks=v["postgresql_allowed_networks"],
        socket_logins=logins,
        certificate_logins=[{"role": access.pooler, "from": list(LOOPBACK)}],
        extra=v["postgresql_extra_rules"],
    )
    settings = tuple(
        schema.Setting(each.name, each.text, each.line, each.reason, each.group, each.restart)
        for each in tuning.settings
    )
    return schema.Server(
        major=major,
        port=v["postgresql_port"],
        address=address(v["postgresql_listen_addresses"]),
        listen_addresses=tuple(v["postgresql_listen_addresses"]),
        locale=v["postgresql_locale"],
        data_directory=f"/var/lib/postgresql/{major}/main",
        configuration_directory=f"/etc/postgresql/{major}/main",
        socket_directory=SOCKETS,
        restart_allowed=v["postgresql_restart_allowed"],
        settings=settings,
        overrides={each.name: each.text for each in settings if each.name in v["postgresql_settings"]},
        budget=tuple(schema.Budget(line.label, line.mb, line.reckoning) for line in tuning.budget),
        max_connections=int(tuning["max_connections"].value),
        kernel={each.name: each.text for each in tuning.kernel},
        hba=tuple(str(rule) for rule in rules),
        ident=(
            *(schema.Ident(str(each["role"]), f"/{each['users']}", str(each["role"])) for each in logins),
            *(schema.Ident(each["map"], f'"{each["system"]}"', each["role"]) for each in v["postgresql_maps"]),
        ),
        archive_command=f"pgbackrest --stanza={backup.stanza} archive-push %p" if backup.physical else "",
        archive_timeout_s=v["backup_archive_timeout_s"],
    )


def _source(v: Mapping[str, Any], host: schema.Host, context: Context) -> schema.Source:
    kind, major = v["postgresql_repository"], v["postgresql_version"]
    pinned = tuple(compatibility.pgdg_packages(major, host.codename))
    if kind == "mirror":
        suite = v["postgresql_mirror_suite"] or f"{host.codename}-pgdg"
        hints = {
            "uri": "postgresql_mirror_uri",
            "suite": "postgresql_mirror_suite",
            "component": "postgresql_mirror_component",
            "key": "postgresql_mirror_key to its publisher's present public key",
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
            "key": "postgresql_repository to mirror with PGDG's present key in postgresql_mirror_key, or upgrade "
            "postgresql-common on the host, whose key is used",
        }
        suite = f"{host.codename}-pgdg{'-archive' if over else ''}"
        pin = f'origin "{uri.partition("://")[2].partition("/")[0].partition(":")[0]}"'
        return schema.Source(kind, uri, suite, "main", PGDG_KEY, pin, pinned, hints=hints)
    if kind == "bundle":
        hints = dict.fromkeys(("uri", "suite", "component", "key"), "postgresql_bundle to one that is made again")
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


def _tls(v: Mapping[str, Any], context: Context) -> schema.Tls:
    provided = bool(v["tls_provided_certificate"])
    own = [] if provided else [context.name, "localhost", "127.0.0.1", "::1"]
    server = schema.Certificate(
        "server",
        f"{TLS}/server.crt",
        f"{TLS}/server.key",
        "server",
        "" if provided else context.name[:64],  # X.520: a common name has 64 characters at most; names count
        tuple(dict.fromkeys([context.address, *v["tls_extra_names"], *own])),
        own_names=not provided,
    )
    role = f"{v['database_owner']}_pooler"
    pooler = schema.Certificate(
        "pooler-client", f"{TLS}/pooler-client.crt", f"{TLS}/pooler-client.key", "client", role, (), own_names=False
    )
    return schema.Tls(
        enabled=v["tls_enabled"],
        minimum_version=v["postgresql_tls_minimum_version"],
        name=context.address,
        provided=provided,
        ca=f"{TLS}/ca.crt",
        certificates=(server, pooler) if v["tls_enabled"] else (),
        client_ca=v["tls_provided_ca"] or f"{v['tls_directory']}/ca.crt",
        valid_days=v["tls_valid_days"],
    )


def _roles(v: Mapping[str, Any], version: str = "") -> list[dict[str, Any]]:
    """Give all login roles; those of ours that search vectors begin with the settings for it."""
    search = {setting.name: setting.text for setting in vector.role_settings(version)} if version else {}
    ours = [
        {**each, "settings": {**search, **(each.get("settings") or {})}} if each["kind"] in SEARCHING else each
        for each in v["database_roles"]
    ]
    return [*ours, *v["database_extra_roles"]]


def _access(v: Mapping[str, Any], profile: Mapping[str, Any], version: str) -> schema.Access:
    return schema.Access(
        database=v["database_name"],
        owner=v["database_owner"],
        databases={v["database_name"]: v["database_owner"], **v["database_extra_databases"]},
        roles=tuple(
            schema.Role(
                name=each["name"],
                kind=each["kind"],
                connection_limit=int(each.get("connection_limit", -1)),
                valid_until=each.get("valid_until"),
                settings={str(key): str(value) for key, value in (each.get("settings") or {}).items()},
                state=each.get("state", "present"),
                has_password=each["name"] in v["database_credentials"],
            )
            for each in _roles(v, version)
        ),
        extensions=tuple(v["database_extensions"]),
        guard=bool(profile["database"]["guard"]),
    )


def _requested_pools(v: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, int]:
    owner, sizes = v["database_owner"], profile["pgbouncer"]
    return {
        owner: sizes["owner_pool"],
        f"{owner}_app": sizes["app_pool"],
        f"{owner}_readonly": sizes["readonly_pool"],
    }


def _pooler(
    v: Mapping[str, Any], probe: Mapping[str, Any], fitted: pools.Pools, server: schema.Server, tls: schema.Tls
) -> schema.Pooler:
    version = compatibility.pgbouncer_version(probe["package_versions"]["pgbouncer"], probe["distribution_codename"])
    key = compatibility.version_key(version)
    words = {"samenet": probe["networks"], "samehost": []}
    networks = [each for name in v["pgbouncer_allowed_networks"] for each in words.get(name, [name])]
    # A certificate of the user's own need not name the loopback: there the socket is the way, as it is without TLS.
    over_tls = tls.enabled and not tls.provided and server.address == "127.0.0.1"
    return schema.Pooler(
        enabled=probe["systemd"],
        port=v["pgbouncer_port"],
        address=address(v["pgbouncer_listen_addresses"]),
        listen_addresses=tuple(v["pgbouncer_listen_addresses"]),
        networks=tuple(dict.fromkeys([*LOOPBACK, *networks])),
        socket_directory=SOCKETS,
        server=server.address if over_tls else SOCKETS,
        version=version,
        per_role_limits=key >= compatibility.version_key("1.23"),
        prepared_statements=v["pgbouncer_max_prepared_statements"] if key >= compatibility.version_key("1.21") else 0,
        pools=dict(fitted.sizes),
        total=fitted.total,
        lookups=pools.LOOKUPS,
        max_clients=v["pgbouncer_max_clients"],
        open_files=v["pgbouncer_max_clients"] + fitted.total + OTHER_FILES,
        query_wait_timeout_s=v["pgbouncer_query_wait_timeout_s"],
        server_connect_timeout_s=v["pgbouncer_server_connect_timeout_s"],
        server_login_retry_s=v["pgbouncer_server_login_retry_s"],
        client_login_timeout_s=v["pgbouncer_client_login_timeout_s"],
        restart_allowed=v["pgbouncer_restart_allowed"],
        accept_advisories=tuple(v["pgbouncer_accept_advisories"]),
    )


def _backup(v: Mapping[str, Any], probe: Mapping[str, Any]) -> schema.Backup:
    kind = validate.repository_kind(v)
    s3 = {key: str(value) for key, value in v["backup_s3"].items() if key not in ("key", "key_secret")}
    cpus, queue = probe["cpus"], v["backup_queue_max_mb"]
    return schema.Backup(
        physical=v["backup_physical"],
        logical=v["backup_logical"],
        stanza=v["backup_stanza"],
        repository=schema.Repository(
            kind,
            v["backup_repository_path"],
            v["backup_repository_host"] if kind == "host" else "",
            v["backup_repository_inventory_name"] if kind == "host" else "",
            REPOSITORY_USER,
            {"uri_style": "host", **s3} if s3 else {},
        ),
        retention_full=v["backup_retention_full"],
        retention_diff=v["backup_retention_diff"],
        compress_level=v["backup_compress_level"],
        processes=v["backup_processes"] or min(max(cpus // 2, 2), cpus),
        archive_timeout_s=v["backup_archive_timeout_s"],
        queue_max_mb=max((probe.get("disk_mb") or 0) // 5, 1024) if queue == -1 else queue,
        age_limit_h=v["backup_age_limit_h"],
        drill_age_limit_h=v["backup_drill_age_limit_h"],
        dump_directory=v["backup_dump_directory"],
        dump_keep=v["backup_dump_keep"],
        dump_keep_days=v["backup_dump_keep_days"],
        minimum_pgbackrest=compatibility.minimum_pgbackrest(v["postgresql_version"], remote=kind == "host"),
    )


def _monitoring(v: Mapping[str, Any]) -> schema.Monitoring:
    where = v["monitoring_listen_address"]
    return schema.Monitoring(
        exporters=v["monitoring_exporters"],
        address=f"[{where}]" if ":" in where else where,
        loopback=where in validate.LOOPBACKS,
        node_port=validate.NODE_PORT,
        postgres_port=validate.POSTGRES_PORT,
        log_max_mb=v["monitoring_log_max_mb"],
        log_keep=v["monitoring_log_keep"],
        journal_max_mb=v["monitoring_journal_max_mb"],
        runbooks=v["monitoring_runbooks"],
    )


def _maintenance(v: Mapping[str, Any]) -> schema.Maintenance:
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


def _timers(v: Mapping[str, Any]) -> Iterable[schema.Timer]:
    """Give every timer of backups and maintenance; one without a schedule is switched off on the host."""
    for kind in ("full", "diff", "incr", "logical"):
        on = v["backup_logical"] if kind == "logical" else v["backup_physical"]
        schedule = v[f"backup_{kind}_schedule"] if on else ""
        yield schema.Timer(
            f"provision-backup-{kind}", schedule, f"provision-backup@{kind}", v["backup_jitter_s"], "backup"
        )
    drill = v["backup_drill_schedule"] if v["backup_physical"] else ""
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


def stamp(plan: schema.Plan) -> str:
    """Give what a complete source build of pgvector leaves behind: its version and which tarball it came from."""
    return f"{plan.pgvector.version} {plan.pgvector.sha256}"


def _state(plan: schema.Plan, probe: Mapping[str, Any], context: Context, verdict: validate.Verdict) -> schema.State:
    installed = set(probe["packages"])
    built = str(probe["pgvector_build"]) == stamp(plan)
    needed = packages.by_role(plan, built=built)
    names = dict.fromkeys(name for role in context.roles for name in needed.get(role, ()))
    key = packages.KEY if plan.source.kind == "pgdg" else ()
    ours = [each for each in probe["clusters"] if (each["major"], each["name"]) == (str(plan.server.major), "main")]
    return schema.State(
        missing_packages=tuple(sorted(set(names) - installed)),
        missing_key_packages=tuple(sorted(set(key) - installed)),
        update_lists=plan.source.kind != "bundle" and probe["package_lists_age_s"] > LISTS_FRESH_S,
        packages_interrupted=probe["packages_interrupted"],
        serving_port=verdict.serving_port,
        serving=any(each["running_pid"] for each in ours),
        cluster="half-made" if probe["cluster_half_made"] else "present" if ours else "absent",
        adopting=verdict.adopting,
        proved=probe["proved"],
        old_layout=probe["old_layout"],
        pgvector_built=built,
        huge_pages=probe["huge_pages"],
        new_build_packages=tuple(name for name in needed["pgvector"] if name not in installed),
        bundle_sha256=probe["bundle_sha256"],
        toolkit_current=probe["toolkit_sha256"] == context.toolkit_sha256,
        database=context.database,
    )
