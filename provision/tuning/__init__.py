"""Settings computed from a host and a profile: each with its value, unit and reason, inside a memory budget.

Pure but for `detect`, which reads what the host is. Refuses a host, version or max_connections that cannot work.
Every path to settings (Ansible's filter, `provision tune`, the audit) goes through `tune`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace

from provision import compatibility
from provision.errors import UsageError
from provision.tuning import autovacuum, connections, extensions, logs, memory, parallel, planner, vector, wal
from provision.tuning.choices import built_in
from provision.tuning.model import BudgetLine, Choices, Host, Request, Setting, Tuning, needs_restart

__all__ = ["BudgetLine", "Choices", "Host", "Setting", "Tuning", "as_facts", "tune"]


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
    choices: Choices | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Tuning:
    """Compute every setting for a host.

    `pgvector_package` is the full package version and `accepted` the advisories accepted by name: both decide
    whether builds may be parallel. `has_lz4` is whether pg_settings.enumvals offers it, `preload` the user's
    libraries, `overrides` the user's settings, which win as they are. Raises UsageError.
    """
    if postgresql_major not in compatibility.POSTGRESQL:
        allowed = ", ".join(map(str, compatibility.POSTGRESQL))
        raise UsageError("unknown PostgreSQL major", seen=str(postgresql_major), allowed=allowed)
    chosen = choices or built_in(profile)
    request = Request(
        host=host,
        profile=profile,
        choices=replace(chosen, preload=extensions.preload(chosen.preload, preload)),
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
    marked = [replace(setting, restart=needs_restart(setting.name, postgresql_major)) for setting in found]
    return Tuning(
        settings=tuple(_override(marked, overrides or {}, postgresql_major)),
        role_settings=tuple(vector.role_settings(request)),
        kernel=tuple(_kernel(request, planned)),
        budget=planned.budget,
        memory_mb=host.memory_mb,
        pool_limit=connections.pool_limit(planned),
        warnings=(*planned.warnings, *_warnings(request, planned)),
    )


def as_facts(host: Mapping[str, object], profile: str, **options: object) -> dict[str, object]:
    """Do what `tune` does with plain values in and out, for Ansible and JSON.

    `host` is what `detect` prints; option `choices` is the section `postgresql` of a profile file.
    """
    if isinstance(options.get("choices"), Mapping):
        options["choices"] = Choices.of(options["choices"])  # type: ignore[arg-type]
    tuning = tune(Host(**host), profile, **options)  # type: ignore[arg-type]
    return {
        "settings": [
            asdict(setting) | {"text": setting.text, "line": setting.line} for setting in tuning.settings
        ],
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
    """Put the user's values in place of ours, and those that we do not compute at the end."""
    ours = {setting.name: setting for setting in settings}
    for name, given in overrides.items():
        value = given if isinstance(given, (bool, int, float)) else str(given)
        old = ours.get(name)
        reason = f"postgresql_settings; computed: {old.text} ({old.reason})" if old else "postgresql_settings"
        group = old.group if old else "of the user"
        ours[name] = Setting(name, value, "", reason, group, needs_restart(name, postgresql))
    return list(ours.values())


def _kernel(request: Request, planned: memory.Memory) -> list[Setting]:
    """Return sysctl values; a container has none of its own."""
    if request.host.container or not request.computed:
        return []
    found = [
        Setting("vm.swappiness", 1, "", "a swapped-out shared buffer is worse than a small page cache", "kernel")
    ]
    if planned.huge_pages:
        reason = "2 MiB pages that hold the shared memory; huge_pages = try alone reserves none"
        found.append(Setting("vm.nr_hugepages", planned.huge_pages, "", reason, "kernel"))
    return found


def _warnings(request: Request, planned: memory.Memory) -> list[str]:
    found = []
    if request.host.container and planned.huge_pages > request.host.huge_pages:
        found.append(
            f"no huge pages in this container: its host reserves {request.host.huge_pages} of the "
            f"{planned.huge_pages} that are needed (sysctl vm.nr_hugepages there)"
        )
    if not request.flash and request.computed:
        found.append("HNSW searches read at random: on a spinning disk keep the index in memory")
    return found
