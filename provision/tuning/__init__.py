"""PostgreSQL settings computed from host and profile, with value, unit and reason, within a memory budget.

Pure, except `detect`, which reads host facts. Refuses a host, version or max_connections that cannot work.
The Ansible filter, `provision tune` and the audit all call `tune`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace

from provision import compatibility
from provision.errors import UsageError
from provision.tuning import (
    alignment,
    autovacuum,
    connections,
    extensions,
    logs,
    memory,
    parallel,
    planner,
    vector,
    wal,
)
from provision.tuning.catalogue import needs_restart
from provision.tuning.choices import built_in
from provision.tuning.model import BudgetLine, Choices, Host, Request, Setting, Tuning

__all__ = ["BudgetLine", "Choices", "Host", "Setting", "Tuning", "as_facts", "tune"]


_PRELOAD = "shared_preload_libraries"
SMALLEST_POOL = 25  # connections; the contract requires 25 to 50 in production


def tune(
    host: Host,
    profile: str,
    *,
    postgresql_major: int = compatibility.DEFAULT_POSTGRESQL,
    pgvector_version: str = compatibility.DEFAULT_PGVECTOR,
    pgvector_package: str = "",
    accepted: Collection[str] = (),
    max_connections: int | None = None,
    vectors: int | None = None,
    dimensions: int = 1536,
    has_lz4: bool = True,
    preload: Collection[str] = (),
    wal_senders: int = alignment.SENDERS,
    choices: Choices | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Tuning:
    """Compute every setting for a host.

    `pgvector_package` is the full package version and `accepted` the ids of accepted advisories: both decide
    whether builds may be parallel. `has_lz4` states whether pg_settings.enumvals lists lz4. `preload` holds the
    user's libraries, `wal_senders` is max_wal_senders where Patroni sets it, `overrides` the user's settings: name to
    value, or to {value, reason}. Overrides win, except that shared_preload_libraries is merged. Dependent values
    follow them: sizes follow max_connections, huge pages follow shared_buffers, the worst case follows all. Raises
    UsageError.
    """
    if postgresql_major not in compatibility.POSTGRESQL:
        allowed = ", ".join(map(str, compatibility.POSTGRESQL))
        raise UsageError("unknown PostgreSQL major", seen=str(postgresql_major), allowed=allowed)
    chosen = choices or built_in(profile)
    given = {name: _text(_given(name, value)[0]) for name, value in (overrides or {}).items()}
    added = [*preload, *given.get(_PRELOAD, "").split(",")]
    if given.get("max_connections", "").isdecimal():
        max_connections = int(given["max_connections"])
    request = Request(
        host=host,
        profile=profile,
        choices=replace(
            chosen,
            preload=extensions.preload(chosen.preload, added),
            huge_pages=given.get("huge_pages", chosen.huge_pages),
        ),
        postgresql=postgresql_major,
        pgvector=pgvector_version,
        max_connections=max_connections,
        vectors=vectors,
        dimensions=dimensions,
        lz4=has_lz4,
        parallel_builds=compatibility.parallel_build_allowed(pgvector_version, pgvector_package, accepted),
    )
    planned = memory.plan(request)
    found = [
        *memory.settings(request, planned),
        *connections.settings(request, planned),
        *wal.settings(request, planned),
        *planner.settings(request),
        *parallel.settings(request, planned),
        *autovacuum.settings(request, planned),
        *vector.settings(request, planned.maintenance, planned.builders),
        *logs.settings(request),
        *extensions.settings(request),
    ]
    worst = memory.with_overrides(request, planned, given)
    marked = [replace(setting, restart=needs_restart(setting.name, postgresql_major)) for setting in found]
    return Tuning(
        settings=tuple(
            alignment.aligned(
                _override(marked, overrides or {}, postgresql_major), postgresql_major, given, wal_senders
            )
        ),
        role_settings=tuple(vector.role_settings(pgvector_version)),
        kernel=tuple(_kernel(request, worst)),
        budget=worst.budget,
        memory_mb=host.memory_mb,
        pool_limit=connections.pool_limit(planned),
        warnings=(*planned.warnings, *_exceeded(request, worst), *_warnings(request, worst)),
    )


def as_facts(host: Mapping[str, object], profile: str, **options: object) -> dict[str, object]:
    """Call `tune` with plain values and return plain values, for Ansible and JSON.

    `host` is the output of `detect`; extra keys are ignored. `choices` is section `postgresql` of a profile file.
    """
    if isinstance(options.get("choices"), Mapping):
        options["choices"] = Choices.of(options["choices"])  # type: ignore[arg-type]
    known = {field.name: host[field.name] for field in fields(Host) if field.name in host}
    tuning = tune(Host(**known), profile, **options)  # type: ignore[arg-type]
    return {
        "settings": [asdict(setting) | {"text": setting.text, "line": setting.line} for setting in tuning.settings],
        "role_settings": {setting.name: setting.text for setting in tuning.role_settings},
        "kernel": {setting.name: setting.text for setting in tuning.kernel},
        "budget": [asdict(line) for line in tuning.budget],
        "budget_mb": tuning.budget_mb,
        "memory_mb": tuning.memory_mb,
        "pool_limit": tuning.pool_limit,
        "warnings": list(tuning.warnings),
        "conf": tuning.as_conf(),
    }


def _override(settings: list[Setting], overrides: Mapping[str, object], postgresql: int) -> list[Setting]:
    """Replace computed values with the user's, and append settings that are not computed."""
    ours = {setting.name: setting for setting in settings}
    for name, given in overrides.items():
        if name == _PRELOAD:  # already merged
            continue
        value, reason = _given(name, given)
        value = value if isinstance(value, (bool, int, float)) else str(value)
        old = ours.get(name)
        computed = f" (computed: {old.text}, {old.reason})" if old else ""
        title = old.group if old else "user settings"
        restart = needs_restart(name, postgresql)
        ours[name] = Setting(name, value, "", (reason or "postgresql_settings") + computed, title, restart)
    return list(ours.values())


def _text(value: object) -> str:
    """Return a value in postgresql.conf syntax."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _exceeded(request: Request, worst: memory.Memory) -> list[str]:
    """Warn if the user's sizes exceed the budget; computed sizes never do."""
    needed = sum(line.mb for line in worst.budget)
    if not request.computed or needed <= request.host.memory_mb:
        return []
    return [f"postgresql_settings: the worst case needs {needed} of {request.host.memory_mb} MB: memory may run out"]


def _given(name: str, given: object) -> tuple[object, str]:
    """Return the user's value, and the reason on one line because it becomes a comment."""
    if not isinstance(given, Mapping):
        return given, ""
    if set(given) - {"value", "reason"} or "value" not in given:
        allowed = "a value, or a mapping of value and reason"
        raise UsageError(
            "malformed setting", where=f"postgresql_settings.{name}", seen=", ".join(given), allowed=allowed
        )
    return given["value"], " ".join(str(given.get("reason") or "").split())


def _kernel(request: Request, planned: memory.Memory) -> list[Setting]:
    """Return sysctl values; none in a container."""
    if request.host.container or not request.computed:
        return []
    found = [
        Setting("vm.swappiness", 1, "", "swapping out shared buffers costs more than a smaller page cache", "kernel")
    ]
    if planned.huge_pages:
        reason = "reserves 2 MiB pages for shared memory; huge_pages = try alone reserves none"
        found.append(Setting("vm.nr_hugepages", planned.huge_pages, "", reason, "kernel"))
    return found


def _warnings(request: Request, planned: memory.Memory) -> list[str]:
    """List the limitations of this host."""
    host = request.host
    found: list[str] = []
    if not request.computed:
        return found
    limit = connections.pool_limit(planned)
    if limit < SMALLEST_POOL:
        found.append(
            f"{host.memory_mb} MB allow {planned.connections} connections, {limit} of them for pools: "
            f"production should have at least {SMALLEST_POOL}"
        )
    if host.cpus == 1:
        found.append("one CPU: no parallel queries or index builds")
    elif not parallel.per_query(request, planned):
        found.append(f"shared memory (/dev/shm) has only {host.shared_memory_mb} MB: no parallel queries")
    if host.container:
        needed = planned.huge_pages
        advice = f"; for huge pages set vm.nr_hugepages = {needed} on its host and postgresql_settings.huge_pages = try"
        kernel = "a container cannot change kernel settings: no huge pages, swappiness of its host"
        found.append(kernel + (advice if needed else ""))
    elif not planned.huge_pages and request.choices.huge_pages != "off":
        found.append(f"no huge pages: {host.memory_mb} MB of memory are too little")
    if not request.flash:
        found.append("HNSW searches read randomly: on a spinning disk the index must fit in memory")
    return found
