"""Tenants: schemas of one database, each with login roles of its own. Names, roles and limits. Pure.

A tenant's schema and its owner have the tenant's name; NAME_app and NAME_readonly are derived from it. Every role has
its search_path stored on the role, so that it applies behind a pooler in transaction mode and with every driver.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from provision.plan import names, schema
from provision.tuning import vector

SUFFIXES = {"app": "write", "readonly": "read"}
"""Suffix of a tenant's role -> its kind; the owner has the tenant's name."""
LONGEST = names.LONGEST_BYTES - len("_readonly")
"""Longest name of a tenant in bytes: the longest derived role is still a name of 63 bytes."""
PLAIN = re.compile(r"[a-z][a-z0-9_]*")
"""Names that need no quotes in SQL, in search_path and in a URL."""
RESERVED = names.RESERVED | {"information_schema", "monitoring", "provision"}
SHARED = "public"
"""The schema of the extensions; every tenant's search_path ends with it."""
JOB = re.compile(r".+_job_[0-9a-f]{12}")
"""Temporary logins of commands that act as a tenant."""
FEWEST = 2
"""Connections of a tenant's owner and of its read-only role, where half of the application's are fewer."""


def role_names(name: str) -> tuple[str, str, str]:
    """Return the owner, the application role and the read-only role of a tenant."""
    return name, f"{name}_app", f"{name}_readonly"


def search_path(name: str) -> str:
    """Return the search_path of a tenant's roles."""
    return f"{name}, {SHARED}"


def mark(database: str) -> str:
    """Return the comment on the owner's role that makes it a tenant.

    Only a superuser may comment on such a role, so that no tenant and no owner of a database can forge it.
    """
    return f"provision: tenant of database {database}"


def problem(name: str) -> str:
    """Return why a text cannot be the name of a tenant; "" if it can."""
    if not PLAIN.fullmatch(name) or len(name) > LONGEST:
        return f"expected 1 to {LONGEST} of a to z, digits and _, beginning with a letter"
    if name in RESERVED or name.startswith("pg_"):
        return f"expected a name that does not begin with pg_, and none of {', '.join(sorted(RESERVED))}"
    for suffix in (*(f"_{kind}" for kind in names.OF_OWNER), names.SECOND):
        if name.endswith(suffix):
            return f"expected a name that does not end with {suffix}, which marks a role derived from another name"
    if names.SCRATCH.fullmatch(name) or JOB.fullmatch(name):
        return "expected another ending: names of temporary databases and logins end like this one"
    return ""


def collisions(name: str, taken: Collection[str]) -> list[str]:
    """Return the names of a tenant's roles and second logins that are taken."""
    roles = role_names(name)
    return [each for each in (*roles, *map(names.second_login, roles)) if each in taken]


def limits(profile: Mapping[str, Any], timeouts: Mapping[str, Any], version: str) -> schema.TenantLimits:
    """Make the limits of tenants from the profile, and the settings of their roles."""
    search = {setting.name: setting.text for setting in vector.role_settings(version)} if version else {}
    return schema.TenantLimits(
        connections=int(profile["database"]["tenant_connections"]),
        size_mb=int(profile["database"]["tenant_size_mb"]),
        settings={**search, **{str(key): str(value) for key, value in timeouts.items()}},
    )


def roles(
    name: str, given: schema.TenantLimits, credentials: Collection[str] = (), connections: int = 0
) -> tuple[schema.Role, ...]:
    """Return a tenant's login roles, with the second logins that `credentials` names.

    The owner has no timeouts, because it migrates and builds indexes. Its temporary files are limited, which a
    session cannot change.
    """
    most = connections or given.connections
    least = max(min(FEWEST, most), most // 2)
    path = {"search_path": search_path(name)}
    of_owner = {key: text for key, text in given.settings.items() if not key.endswith("_timeout")}
    found = []
    for role, kind in zip(role_names(name), ("owner", *SUFFIXES.values()), strict=True):
        settings = {**(of_owner if kind == "owner" else given.settings), **path}
        limit = most if kind == "write" else least
        found.append(schema.Role(role, kind, limit, None, settings, "present", role in credentials))
        second = names.second_login(role)
        if second in credentials:
            settings = {**settings, "role": role}
            found.append(schema.Role(second, "second", limit, None, settings, "present", has_password=True))
    return tuple(found)


def pool(given: schema.TenantLimits) -> int:
    """Return the server connections of a tenant's role through the pooler: one fewer than its smallest role may have.

    The one that is left is for direct connections, such as migrations.
    """
    return max(1, min(role.connection_limit for role in roles("a", given)) - 1)


def declared(v: Mapping[str, Any], given: schema.TenantLimits) -> tuple[schema.Tenant, ...]:
    """Return the tenants of the inventory."""
    return tuple(
        schema.Tenant(
            each["name"],
            int(each.get("connection_limit") or given.connections),
            int(given.size_mb if each.get("size_mb") is None else each["size_mb"]),
            roles(each["name"], given, v["database_credentials"], int(each.get("connection_limit") or 0)),
        )
        for each in v["database_tenants"]
    )


def refusals(v: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each tenant of the inventory that cannot exist, and for each password that is missing."""
    taken = {str(each["name"]) for _, each in names.roles(v)} | {v["database_owner"]}
    taken |= {names.second_login(each) for each in taken} | {f"{v['database_owner']}_{kind}" for kind in names.OF_OWNER}
    seen: set[str] = set()
    for number, each in enumerate(v["database_tenants"], 1):
        name, where = str(each["name"]), f"database_tenants, tenant {number}: name is {each['name']!r}"
        if why := problem(name):
            yield f"{where}: {why}"
            continue
        if name in seen:
            yield f"{where}: expected each tenant once"
        elif clash := collisions(name, taken):
            yield f"{where}: its role {clash[0]} is also a role of database_roles or database_extra_roles: rename one"
        seen.add(name)


def warnings(found: Collection[schema.Tenant], free: int) -> list[str]:
    """Warn if the declared tenants may open more connections together than the roles of the database leave free."""
    total = sum(role.connection_limit for each in found for role in each.roles if role.kind != "second")
    if total <= free or not found:
        return []
    return [
        f"database_tenants: {len(found)} tenants may open {total} connections together, but the roles of "
        f"database_roles leave {free}: reduce connection_limit of tenants, or raise postgresql_settings.max_connections"
    ]
