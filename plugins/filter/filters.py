"""Filters for tasks: thin wrappers of the package, which does the work and is tested there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from ..plugin_utils.project import ROOT  # noqa: F401 - makes the package importable

# isort: split
from provision import addresses, pins, quoting
from provision.controller import apt, local
from provision.errors import ProvisionError
from provision.plan import secrets


def access(plan: dict[str, Any], credentials: dict[str, Any], cluster: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what `provision access` reads: plan.access, with the SCRAM verifier of each role that has a password.

    `cluster` is plan.cluster, whose fleet says whether this host holds the schemas of tenants.
    """
    fleet = (cluster or {}).get("fleet")
    try:
        roles = [_role(role, credentials) for role in plan["roles"]]
        tenants = [
            {"name": tenant["name"], "roles": [_role(role, credentials) for role in tenant["roles"]]}
            for tenant in plan["tenants"]
        ]
    except ProvisionError as error:
        raise AnsibleFilterError(str(error)) from None
    others = {name: owner for name, owner in plan["databases"].items() if name != plan["database"]}
    return {
        "database": plan["database"],
        "owner": plan["owner"],
        "guard": plan["guard"],
        "extensions": plan["extensions"],
        "extra_databases": others,
        "roles": roles,
        "tenants": tenants,
        "tenant_limits": plan["tenant_limits"],
        "fleet": ("worker" if fleet["group"] else "coordinator") if fleet else "",
    }


def _role(role: dict[str, Any], credentials: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "kind", "connection_limit", "valid_until", "settings", "state")
    return {**{key: role[key] for key in keys}, "verifier": _verifier(credentials.get(role["name"]))}


def _verifier(secret: dict[str, Any] | None) -> str | None:
    return secrets.scram_verifier(str(secret["password"]), str(secret["salt"])) if secret else None


def passwords(roles: dict[str, Any], credentials: dict[str, Any]) -> dict[str, str]:
    """Return the password of each of these roles that has one."""
    return {role: str(credentials[role]["password"]) for role in roles if role in credentials}


def cluster_passwords(passphrase: str) -> dict[str, dict[str, str]]:
    """Return the passwords inside a cluster, derived from its passphrase."""
    return secrets.cluster(str(passphrase))


def endpoint(host: str, port: int | str) -> str:
    """Write a host with its port, an IPv6 address in brackets."""
    return addresses.endpoint(host, port)


def package_source(message: str, source: dict[str, Any]) -> str:
    """Explain why apt cannot read a package source, and what to set instead."""
    return apt.unreadable(message, source)


def packages_failure(result: dict[str, Any], names: list[str], source: dict[str, Any]) -> str:
    """Explain why apt could not install packages, and what to set instead."""
    said = "\n".join(str(result.get(part, "")) for part in ("msg", "stderr", "stdout"))
    return apt.not_installed(said, names, source)


def quoted(text: Any, target: str) -> str:
    """Return a text as a target needs it: see provision.quoting.TARGETS."""
    try:
        return quoting.TARGETS[target](str(text))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from None


def conninfo(parameters: dict[str, Any]) -> str:
    """Return libpq's key=value string of parameters."""
    return quoting.conninfo(parameters)


def pinned(parameters: dict[str, Any]) -> dict[str, Any]:
    """Add to a connection's parameters the settings that keep objects of a database's owner out of its queries."""
    return {**parameters, **pins.parameters()}


def pooled(names: Iterable[str]) -> list[str]:
    """Return the databases, or the roles, whose names the pooler supports."""
    return [name for name in names if quoting.is_pgbouncer_key(name)]


def public_key(path: str) -> str:
    """Read an OpenPGP public key of the controller, ASCII-armoured or binary, as armoured text."""
    try:
        return apt.armoured(Path(path).expanduser())
    except ProvisionError as error:
        raise AnsibleFilterError(str(error)) from None


def local_release(project: str) -> dict[str, Any]:
    """Tell what the controller's own release has of PostgreSQL and pgvector; see provision.controller.local."""
    try:
        return local.release(Path(project))
    except ProvisionError as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    """Names what Ansible may use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Map every filter's name to its function."""
        return {
            "access": access,
            "endpoint": endpoint,
            "conninfo": conninfo,
            "local_release": local_release,
            "package_source": package_source,
            "packages_failure": packages_failure,
            "passwords": passwords,
            "pinned": pinned,
            "cluster_passwords": cluster_passwords,
            "pooled": pooled,
            "public_key": public_key,
            "quoted": quoted,
        }
