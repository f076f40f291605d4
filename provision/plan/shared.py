"""Values that several roles write on a host, and the tags that a run needs to change one of them. Pure.

A run whose tags apply a value in one role but not in another would break the host: the server would archive into one
stanza while pgBackRest uses another. The probe reads the values that each role last applied (`applied`, from the
module_utils of that name); a run that would leave a role behind is refused with the tags to add.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from provision.plan import packages
from provision.plan.schema import Plan

VARIABLES = {
    "stanza": "backup_stanza or backup_physical",
    "port": "postgresql_port",
    "tls": "tls_enabled",
    "owner": "database_owner",
    "database": "database_name",
    "route": "postgresql_listen_addresses or tls_enabled",
}
USERS: dict[str, set[str]] = {
    "stanza": set(),
    "port": {"database", "migrations", "maintenance", "verify"},
    "tls": {"tls", "verify"},
    "owner": {"database", "migrations", "verify"},
    "database": {"database", "migrations", "verify"},
    "route": {"postgresql"},
}
"""Roles that use a value without writing it."""


def wanted(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the value that each role writes, by role and name, as far as the plan enables the role."""
    port, owner, database = str(plan.server.port), plan.access.owner, plan.access.database
    tls = "on" if plan.tls.enabled else "off"
    stanza = plan.backup.stanza if plan.backup.physical else ""
    found = {"postgresql": {"stanza": stanza, "port": port, "tls": tls, "owner": owner}}
    if plan.backup.physical:
        found["backup"] = {"stanza": stanza, "port": port}
    if plan.pooler.enabled:
        found["pgbouncer"] = {"port": port, "tls": tls, "owner": owner, "route": plan.pooler.server}
    if plan.monitoring.exporters and plan.host.systemd:
        found["monitoring"] = {"port": port, "owner": owner, "database": database}
    return found


def problems(plan: Plan, probe: Mapping[str, Any], selected: Collection[str] | None) -> list[str]:
    """Return a refusal for each value that this run would change in only some of its roles.

    `selected` are the roles whose tasks the run's tags select; None is all of them.
    """
    if selected is None:
        return []
    applied: Mapping[str, Mapping[str, str]] = probe.get("applied") or {}
    asked = wanted(plan)
    found = []
    for name, variable in VARIABLES.items():
        writers = {role: values[name] for role, values in asked.items() if name in values}
        stale = {
            role: applied[role][name]
            for role, value in writers.items()
            if name in applied.get(role, {}) and _form(applied[role][name]) != _form(value)
        }
        missing = sorted(set(stale) - set(selected))
        if missing and set(selected) & ({*writers} | USERS[name]):
            seen = ", ".join(f"{role} has {stale[role] or 'none'}" for role in missing)
            value = next(iter(writers.values())) or "none"
            found.append(f"{variable}: {value} is requested, {seen} on this host; {_add(selected, missing)}")
    return found + _extensions(plan, probe, selected)


def _extensions(plan: Plan, probe: Mapping[str, Any], selected: Collection[str]) -> list[str]:
    """Refuse to create an extension whose library the server does not preload and this run does not add."""
    if "database" not in selected or "postgresql" in selected:
        return []
    applied = (probe.get("applied") or {}).get("postgresql", {})
    loaded = {each.strip() for each in applied.get("preload", "").split(",")}
    return [
        f"database_extensions has {name}, whose library the server does not preload; {_add(selected, ['postgresql'])}"
        for name in plan.access.extensions
        if set(packages.preload([name])) - loaded
    ]


def _form(value: str) -> str:
    """Return a value in a comparable form: the pooler's TLS modes become on or off."""
    return {"off": "off", "disable": "off", "require": "on", "verify-full": "on"}.get(value, value)


def _add(selected: Collection[str], missing: Collection[str]) -> str:
    tags = ",".join(dict.fromkeys([*sorted(set(selected) & set(ROLES)), *missing]))
    return f"run again with --tags {tags}, or without tags"


ROLES = (
    "adopt", "tls", "etcd", "postgresql", "patroni", "pgvector", "database", "pgbouncer", "backup", "monitoring",
    "migrations", "maintenance", "verify",
)  # fmt: skip
"""Roles with a tag of their name; packages and toolkit come with each of them."""
