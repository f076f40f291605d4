"""The tenants that a database has, read from the server's catalogue. Read-only.

A tenant is a login role with a comment that only a superuser can set (`plan.tenants.mark`). There is no other record:
the comment is created with the role, is in every physical backup and in the roles of a dump, and ends with the role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from provision.database import Connection
from provision.errors import UsageError
from provision.plan import names, tenants

Ask = Callable[..., list[tuple[Any, ...]]]

_KNOWN = """
SELECT r.rolname::text, n.oid IS NOT NULL, coalesce(n.nspowner = r.oid, false)
FROM pg_roles r JOIN pg_shdescription d ON d.objoid = r.oid AND d.classoid = 'pg_authid'::regclass
LEFT JOIN pg_namespace n ON n.nspname = r.rolname WHERE d.description = %s ORDER BY 1
"""


@dataclass(frozen=True)
class Tenant:
    """A tenant: whether its schema exists, and whether its owner owns the schema."""

    name: str
    schema: bool
    owned: bool

    @property
    def sound(self) -> bool:
        """Whether its schema can be used."""
        return self.schema and self.owned

    @property
    def state(self) -> str:
        """Its schema in words: sound, no schema or foreign schema."""
        return "sound" if self.sound else "foreign schema" if self.schema else "no schema"


def marked(ask: Ask, database: str) -> list[str]:
    """Return the names of a database's tenants; `ask` queries any database of the server."""
    return [str(row[0]) for row in ask(_KNOWN, tenants.mark(database))]


def roles(ask: Ask, found: Iterable[str]) -> list[str]:
    """Return the login roles of these tenants that exist, with their second logins."""
    wanted = [role for name in found for role in tenants.role_names(name)]
    wanted += [names.second_login(role) for role in wanted]
    rows = ask("SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1", wanted)
    return [str(row[0]) for row in rows]


def known(session: Connection) -> list[Tenant]:
    """Return the tenants of the session's database by name."""
    database = session.info.dbname
    rows = session.execute(_KNOWN, (tenants.mark(database),)).fetchall()
    return [Tenant(str(name), bool(there), bool(owned)) for name, there, owned in rows]


def find(session: Connection, name: str) -> Tenant:
    """Return one tenant. Raises UsageError with the names of the others, or if its schema cannot be used."""
    found = {each.name: each for each in known(session)}
    if name not in found:
        near = sorted(found)[:10]
        raise UsageError(
            f"no tenant {name}",
            where=f"database {session.info.dbname}",
            allowed=(", ".join(near) + (" and others" if len(found) > len(near) else "")) or "none exists",
            run="provision tenant list",
        )
    if not found[name].sound:
        raise UsageError(
            f"the schema of tenant {name} cannot be used",
            where=f"database {session.info.dbname}",
            seen="it belongs to another role" if found[name].schema else "it does not exist",
            allowed=f"a schema {name} that role {name} owns",
            run=f"provision tenant add {name}",
        )
    return found[name]
