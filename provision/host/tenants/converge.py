"""Converge the roles, the schema and the grants of tenants. Changes the database as the superuser.

Runs statements about objects of a tenant (GRANT, REVOKE, ALTER ... OWNER), which call no function of their owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from psycopg import sql

from provision.errors import DatabaseError
from provision.host import grants
from provision.host.access import Access, Role
from provision.host.tenants import catalog
from provision.plan import tenants
from provision.plan.names import second_login
from provision.plan.schema import TenantLimits

STATISTICS = "pg_stat_statements"
"""Extension whose views show every role the number of calls and rows of all others."""


def roles(access: Access, database: str, requested: Mapping[str, Sequence[Role]]) -> None:
    """Converge the login roles of tenants by name, and mark their owners.

    Raises DatabaseError for a role that is not a tenant's.
    """
    known = set(catalog.marked(access.ask, database))
    missing = [name for name in requested if name not in known]
    every = [role.name for name in missing for role in requested[name]]
    taken = {str(row[0]) for row in access.ask("SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s)", every)}
    for name in missing:
        if clash := next((role.name for role in requested[name] if role.name in taken), None):
            raise DatabaseError(
                f"tenant {name} cannot be created",
                where=f"database {database}",
                seen=f"role {clash} exists and belongs to no tenant",
                allowed="a name whose roles do not exist",
                run=f"choose another name, or: DROP ROLE {clash}",
            )
        # One message, and so one transaction: a run that is killed leaves no role that belongs to no tenant.
        mine = sql.Identifier(name)
        statement = sql.SQL("CREATE ROLE {}; COMMENT ON ROLE {} IS {}")
        access.change(f"tenant {name}", statement.format(mine, mine, sql.Literal(tenants.mark(database))))
    access.roles([role for listed in requested.values() for role in listed])


def schemas(access: Access, requested: Mapping[str, Sequence[Role]]) -> None:
    """Converge the schemas of tenants by name and the grants in them, in a session of their database.

    Raises DatabaseError for a schema of another role, whose contents are not the tenant's.
    """
    names = sorted(requested)
    owners = {str(name): str(owner) for name, owner in access.ask(grants.OWNERS, names)}
    for name in names:
        mine = sql.Identifier(name)
        if name not in owners:
            access.change(f"schema {name}", sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(mine, mine))
        elif owners[name] != name:
            raise DatabaseError(
                f"schema {name} does not belong to tenant {name}",
                where=f"database {access.connection.info.dbname}",
                seen=f"owner {owners[name]}",
                allowed=f"owner {name}",
                run=f"review its contents, then: provision tenant add {name} --adopt",
            )
    there = [name for name in names if name in owners or not access.plan]
    grants.converge(access, [grants.Schema(name, name, requested[name], open_=False) for name in there])


def current(access: Access, names: Sequence[str], limits: TenantLimits) -> list[Role]:
    """Return the roles of tenants that the inventory does not declare: their own limits, and the plan's settings."""
    rows = access.ask(
        "SELECT rolname::text, rolpassword, rolconnlimit FROM pg_authid WHERE rolname = ANY(%s)",
        [role for name in names for role in tenants.role_names(name)],
    )
    found = {str(role): (verifier, int(limit)) for role, verifier, limit in rows}
    return [
        Role(each.name, each.kind, *found[each.name], None, each.settings)
        for name in names
        for each in tenants.roles(name, limits)
        if each.name in found
    ]


def present(access: Access, names: Iterable[str]) -> dict[str, list[Role]]:
    """Return the roles of tenants as the server has them, by tenant and kind, for the comparison of grants alone."""
    result: dict[str, list[Role]] = {name: [] for name in names}
    there = set(catalog.roles(access.ask, result))
    for name, listed in result.items():
        for role, kind in zip(tenants.role_names(name), ("owner", *tenants.SUFFIXES.values()), strict=True):
            pairs = ((role, kind), (second_login(role), "second"))
            listed += [Role(each, what) for each, what in pairs if each in there]
    return result


def statistics(access: Access, strangers: Iterable[str]) -> None:
    """Close the statistics of statements to everyone but the roles that have them by name.

    Without this, each role reads how often the others run which statement, though not its text. `strangers` are the
    roles outside tenants that keep the privilege.
    """
    rows = access.ask(
        "SELECT format('%%I.%%I', n.nspname, c.relname), 'TABLE',"
        " EXISTS (SELECT FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) x WHERE x.grantee = 0)"
        " FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = %s"
        " JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'v'"
        " JOIN pg_namespace n ON n.oid = c.relnamespace UNION ALL"
        " SELECT p.oid::regprocedure::text, 'FUNCTION',"
        " EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x WHERE x.grantee = 0)"
        " FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = %s"
        " JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid ORDER BY 1",
        STATISTICS,
        STATISTICS,
    )
    kept = sorted(set(strangers))
    for what, word, public in rows:
        if not public:
            continue
        right = "SELECT" if word == "TABLE" else "EXECUTE"
        object_ = sql.SQL(f"{word} {what}")  # quoted by the server
        grants = [sql.SQL("REVOKE ALL ON {} FROM PUBLIC").format(object_)]
        if kept:
            whom = sql.SQL(", ").join(map(sql.Identifier, kept))
            grants.append(sql.SQL(f"GRANT {right} ON {{}} TO {{}}").format(object_, whom))
        access.change(f"{word.lower()} {what}: REVOKE ALL FROM PUBLIC", sql.SQL("; ").join(grants))
