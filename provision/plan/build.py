"""Make the plan of a host from variables, a probe and a profile. Pure: the same inputs give the same plan.

`build` reports every problem at once and gives no plan then. Variables come typed from `plan.variables`, with the
roles' defaults filled in; the probe is what the module host_plan prints; the profile is a file of profiles/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from provision import compatibility
from provision.distributions import ARCHITECTURES
from provision.errors import UsageError
from provision.plan import (
    fleet,
    names,
    network,
    packages,
    schema,
    sections,
    settings,
    shared,
    sources,
    tenants,
    topology,
    upgrade,
    validate,
    versions,
)
from provision.plan.context import Context, Verdict
from provision.tuning import Host as Machine
from provision.tuning import Tuning, alignment, network_share, pools, shares, tune
from provision.tuning.connections import SUPERUSER_RESERVED
from provision.tuning.model import MINIMUM_MEMORY_MB, Choices

__all__ = ["Built", "Context", "Judge", "build", "stamp"]

MIGRATIONS = "/usr/local/share/provision/migrations"
LISTS_FRESH_S = 3600
ROOMY_MB = 4096
"""Memory with which the settings of every profile can be computed."""


@dataclass(frozen=True)
class Built:
    """The plan and the host's state, or the problems; `notices` are warnings that the plan does not keep."""

    plan: schema.Plan | None
    state: schema.State | None
    problems: tuple[str, ...]
    notices: tuple[str, ...]


Judge = Callable[
    [Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], Context, str],
    Verdict,
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
    v, context = fleet.applied(v, sections.NODE_FILES), fleet.context(context)
    v, mistakes = settings.typed(v)
    v = {**v, **versions.tarball(v)}
    version = _pgvector_version(v, probe, context)
    verdict = judge(v, probe, profile, context, version)
    verdict.refusals += mistakes if context.database else []
    clustered = v["cluster_enabled"]
    senders = topology.SENDERS + len(topology.members(context, v["cluster_name"])) if clustered else alignment.SENDERS
    tuning, problem = _sizes(v, probe, profile, version or compatibility.NEWEST_PGVECTOR, senders)
    judged = judge is not validate.judge_nothing
    if problem and judged and context.database:
        # Of a host that is too small, the judgement has said so with the variable's name.
        small = probe["memory_mb"] < MINIMUM_MEMORY_MB and verdict.refusals
        return Built(None, None, (*verdict.refusals, *(() if small else (problem,))), ())
    fitted = pools.fit(
        int(tuning["max_connections"].value),
        _requested_pools(v, profile),
        v["pgbouncer_pools"],
        pools.limits(sections.roles(v)),
    )
    own = {each["name"] for each in v["database_extra_roles"]}
    shared_out = shares.share(
        int(tuning["max_connections"].value),
        sections.roles(v),
        fitted.sizes,
        own | {names.second_login(name) for name in own},
    )
    of_network = network.share(v, probe, int(tuning["max_connections"].value), fitted.total)
    # A host beside the databases runs no server: it may be too small for these connections.
    unfit = fitted.refusals or (*shared_out.refusals, *of_network.refusals)
    refusals = (*verdict.refusals, *(unfit if context.database else fitted.refusals if context.pooler else ()))
    if refusals and judged:
        return Built(None, None, refusals, ())
    warnings = (
        *verdict.warnings,
        *((*fitted.warnings, *shared_out.warnings, *tuning.warnings) if context.database else ()),
        *(_tenants(v, profile, version, tuning, shared_out) if context.database else ()),
    )
    plan = _plan(v, probe, profile, context, tuning, fitted, shared_out, of_network, version, warnings)
    state = _state(plan, probe, context, verdict)
    barred = sources.uninstallable({*state.missing_packages, *state.missing_key_packages}, plan.source, probe)
    partial = shared.problems(plan, probe, context.selected) if context.database else []
    if judged and (barred or partial):
        return Built(None, None, (*barred, *partial), ())
    return Built(plan, state, (), (*warnings, *verdict.notices))


def _tenants(
    v: Mapping[str, Any], profile: Mapping[str, Any], version: str, tuning: Tuning, shared_out: shares.Shares
) -> list[str]:
    """Return the warnings about the tenants' connections, which share what the roles of the database leave free."""
    found = tenants.declared(v, tenants.limits(profile, v["database_timeouts"], version))
    given = sum(limit for limit in shared_out.limits.values() if limit > 0)
    return tenants.warnings(found, max(0, int(tuning["max_connections"].value) - SUPERUSER_RESERVED - given))


def _sizes(
    v: Mapping[str, Any], probe: Mapping[str, Any], profile: Mapping[str, Any], version: str, senders: int
) -> tuple[Tuning, str]:
    """Return the host's settings; with a problem, those of a sufficient host without postgresql_settings.

    A play that only uses a converged host, such as a restore, reads none of them, and must not fail for them.
    """
    try:
        tuning = _tuning(v, probe, profile, version, senders)
        connections = str(tuning["max_connections"].value)
        if connections.isdigit():
            return tuning, ""
        problem = f"postgresql_settings.max_connections is {connections!r}: expected an integer"
    except UsageError as error:
        where = f"{error.where}: " if error.where else ""
        problem = f"{where}{error.what}: {error.seen}; allowed: {error.allowed}"
    roomy = {**probe, "memory_mb": max(probe["memory_mb"], ROOMY_MB)}
    return _tuning({**v, "postgresql_settings": {}}, roomy, profile, version, senders), problem


def _plan(
    v: Mapping[str, Any],
    probe: Mapping[str, Any],
    profile: Mapping[str, Any],
    context: Context,
    tuning: Tuning,
    fitted: pools.Pools,
    shared_out: shares.Shares,
    of_network: network_share.NetworkShare,
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
    cluster = topology.build(v, probe, profile, context, tuning)
    tls = sections.tls(v, context, cluster)
    access = sections.access(v, profile, version, shared_out.limits)
    backup = sections.backup(v, probe)
    server = sections.server(v, probe, tuning, tls, access, backup, of_network, cluster)
    return schema.Plan(
        schema=schema.SCHEMA,
        name=context.name,
        address=context.address,
        profile=v["plan_profile_name"],
        inventory=context.inventory,
        host=host,
        source=sections.source(v, host.codename, context),
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
        pooler=sections.pooler(v, probe, fitted, server, tls, cluster, access),
        balancer=sections.balancer(v, probe, server, cluster),
        backup=backup,
        monitoring=sections.monitoring(v),
        maintenance=sections.maintenance(v),
        migrations=schema.Migrations(MIGRATIONS, v["migrations_lock_timeout"]),
        timers=tuple(sections.timers(v)),
        cluster=cluster,
        warnings=warnings,
    )


def _pgvector_version(v: Mapping[str, Any], probe: Mapping[str, Any], context: Context) -> str:
    """Return the version of pgvector that a host will have; PGDG's package is the newest."""
    if v["pgvector_install_method"] == "source":
        return str(v["pgvector_version"])
    if v["postgresql_repository"] == "distribution":
        return validate.shipped(probe["distribution_codename"])[1]
    if v["postgresql_repository"] == "bundle":
        return str(context.bundle.get("pgvector_version", ""))
    return compatibility.NEWEST_PGVECTOR


def _tuning(
    v: Mapping[str, Any], probe: Mapping[str, Any], profile: Mapping[str, Any], version: str, senders: int
) -> Tuning:
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
        wal_senders=senders,
        preload=[*v["postgresql_preload_libraries"], *packages.preload(v["database_extensions"])],
        choices=Choices.of(profile["postgresql"]),
        overrides=v["postgresql_settings"],
    )


def _requested_pools(v: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, int]:
    sizes = profile["pgbouncer"]
    requested = (sizes["owner_pool"], sizes["app_pool"], sizes["readonly_pool"])
    found = dict(zip(names.with_passwords(v["database_owner"]), requested, strict=True))
    seconds = {names.second_login(role): size for role, size in found.items()}
    present = {each["name"] for each in sections.roles(v) if each["kind"] == "second"}
    return {**found, **{role: size for role, size in seconds.items() if role in present}}


def stamp(plan: schema.Plan) -> str:
    """Return the content of the stamp of a complete source build of pgvector: version and checksum of the tarball."""
    return f"{plan.pgvector.version} {plan.pgvector.sha256}"


def _roles(plan: schema.Plan, context: Context) -> list[str]:
    """Return the roles of the play that do something on this host: a host without a database has few of them."""
    if context.database:
        return list(context.roles)
    kept = {"tls", *(("toolkit", "etcd") if plan.cluster else ()), *(("pgbouncer",) if context.pooler else ())}
    return [role for role in context.roles if role in kept]


def _state(plan: schema.Plan, probe: Mapping[str, Any], context: Context, verdict: Verdict) -> schema.State:
    installed = set(probe["packages"])
    built = str(probe["pgvector_build"]) == stamp(plan)
    needed = packages.by_role(plan, built=built)
    names = dict.fromkeys(name for role in _roles(plan, context) for name in needed.get(role, ()))
    key = packages.KEY if plan.source.kind == "pgdg" and context.database else ()
    ours = [each for each in probe["clusters"] if (each["major"], each["name"]) == (str(plan.server.major), "main")]
    return schema.State(
        missing_packages=tuple(sorted(set(names) - installed)),
        missing_key_packages=tuple(sorted(set(key) - installed)),
        update_lists=plan.source.kind != "bundle" and probe["package_lists_age_s"] > LISTS_FRESH_S,
        packages_interrupted=probe["packages_interrupted"],
        services_blocked=probe["services_blocked"],
        serving_port=verdict.serving_port,
        serving=any(each["running_pid"] for each in ours),
        cluster="half-made" if probe["cluster_half_made"] else "present" if ours else "absent",
        adopting=verdict.adopting,
        proved=probe["proved"],
        old_layout=probe["old_layout"],
        pgvector_built=built,
        huge_pages=probe["huge_pages"],
        new_build_packages=tuple(
            name for name in needed["pgvector"] if name not in installed or name in probe["build_packages"]
        ),
        bundle_sha256=probe["bundle_sha256"],
        toolkit_current=probe["toolkit_sha256"] == context.toolkit_sha256,
        upgrading=upgrade.ROLE in context.roles and probe["plan_major"] != plan.server.major,
        database=context.database,
    )
