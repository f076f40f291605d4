"""Converge login roles, databases, extensions and grants, and report the changes. Does IO.

Compares the catalogue with the request and runs only the statements needed: it repairs drift, and a second run changes
nothing. Runs as the superuser over the socket. Refuses to drop a role that owns objects. Passwords are SCRAM verifiers,
and the session keeps them out of the server's log and pg_stat_statements.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from provision.database import Connection, connect_pinned, identifier
from provision.errors import DatabaseError, UsageError
from provision.host import lookup, settings
from provision.host.backup import exchange
from provision.plan import names
from provision.plan.schema import TenantLimits
from provision.quoting import conninfo

GROUPS = {"backup": ("pg_read_all_data", "pg_read_all_stats"), "monitor": ("pg_monitor",)}
"""Predefined roles (PostgreSQL 14 and newer): the least that pg_dump and an exporter need."""
RESERVED_GROUP = "pg_use_reserved_connections"
"""Predefined role (16 and newer) that lets backup and monitoring log in while all other connections are taken."""
LARGE_OBJECTS = ("lo_creat(integer)", "lo_create(oid)", "lo_from_bytea(oid, bytea)")
"""Functions that create large objects, which no schema's privileges limit: only owners of databases keep them."""

KINDS = ("owner", "write", "read", "backup", "monitor", "pooler", "second")
"""A second login is a member of the role in its setting `role`, so that its sessions have that role's privileges."""

SHARED = "public"
"""The schema of the extensions and of the tables that belong to no tenant."""
MAINTAINED = ("postgres", "template1")
"""Databases of superusers and the template of new databases: every role may connect, none may create objects."""

CITUS, WORKER = "citus", "worker"
"""The extension that joins a fleet, in the main database alone; `fleet` of a host that holds tenants."""
APPLICATION = "provision access"
KEPT_OUT = "1970-01-01 00:00:00"
"""VALID UNTIL, in UTC, of a role that a move in a fleet locks out; only the fleet's commands change it."""
UNSEEN = {
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_error_statement": "panic",
    "pg_stat_statements.track": "none",
    "auto_explain.log_min_duration": "-1",
}


_SCHEMA = """
SELECT v.schema::text FROM pg_available_extensions a JOIN pg_available_extension_versions v
ON v.name = a.name AND v.version = a.default_version WHERE a.name = %s AND v.schema IS NOT NULL
"""
_LACKING = """
SELECT o.name::text, pg_get_userbyid(o.owner)::text, w.privilege_type FROM (
    SELECT 'd'::"char" AS kind, datname AS name, datdba AS owner, datacl AS acl FROM pg_database
    UNION ALL SELECT 'n', nspname, nspowner, nspacl FROM pg_namespace) o, aclexplode(acldefault(o.kind, o.owner)) w
WHERE o.kind = %s AND o.name = ANY(%s) AND w.grantee = o.owner AND NOT EXISTS (
    SELECT FROM aclexplode(coalesce(o.acl, acldefault(o.kind, o.owner))) x
    WHERE x.grantee = o.owner AND x.privilege_type = w.privilege_type)
"""
"""Privileges that an owner has by default and was deprived of: kind d is a database, n a schema (acldefault)."""


@dataclass(frozen=True)
class Role:
    """A login role. `kind` is one of KINDS. Without a `verifier` the role has no password."""

    name: str
    kind: str
    verifier: str | None = None
    connection_limit: int = -1
    valid_until: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    present: bool = True

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Role:
        """Parse a role from JSON. Raises UsageError for an unknown key or kind."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__) - {"state"})
        if unknown or values.get("kind") not in KINDS:
            raise UsageError(
                "invalid login role",
                where=f"database_roles, role {values.get('name')}",
                seen=", ".join(unknown) or f"kind {values.get('kind')!r}",
                allowed=", ".join([*cls.__dataclass_fields__]) if unknown else ", ".join(KINDS),
            )
        given = {key: value for key, value in values.items() if key != "state" and value is not None}
        own = {str(key): str(value) for key, value in dict(given.pop("settings", {})).items()}
        return cls(**given, settings=own, present=values.get("state", "present") == "present")


def unseen(connection: Connection, *, local: bool = False) -> None:
    """Keep statements, and the verifiers in them, out of logs and statistics; `local` until the transaction ends."""
    for name, value in UNSEEN.items():
        connection.execute("SELECT set_config(%s, %s, %s)", (name, value, local))


class Access:
    """A superuser connection that collects its changes; with `plan` it does not make them."""

    def __init__(self, connection: Connection, *, plan: bool = False) -> None:
        """Keep passwords out of the server's log and statistics."""
        self.connection, self.plan = connection, plan
        self.changes: list[str] = []
        unseen(connection)

    def ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Query the catalogue."""
        return self.connection.execute(query, parameters).fetchall()

    def change(self, what: str, statement: sql.SQL | sql.Composed) -> None:
        """Make one change, or only record it when planning."""
        self.changes.append(what)
        if not self.plan:
            self.connection.execute(statement)

    def roles(self, requested: Sequence[Role]) -> None:
        """Create, alter or drop login roles: attributes, password, limit, settings, memberships."""
        found = {
            row[0]: row[1:]
            for row in self.ask(
                "SELECT r.rolname, r.rolcanlogin, r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication"
                " OR r.rolbypassrls, r.rolconnlimit, a.rolpassword,"
                " to_char(nullif(r.rolvaliduntil, 'infinity') AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),"
                " (SELECT setconfig FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = 0),"
                " ARRAY(SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
                " WHERE m.member = r.oid ORDER BY 1)"
                " FROM pg_roles r JOIN pg_authid a ON a.oid = r.oid WHERE r.rolname = ANY(%s)",
                [role.name for role in requested],
            )
        }
        for role in requested:
            if role.present:
                self._role(role, found.get(role.name))
            elif role.name in found:
                self._drop(role)

    def unused_second_logins(self, requested: Sequence[Role]) -> list[Role]:
        """Return the second logins that an earlier run made and that the vault no longer has, as roles to drop."""
        rows = self.ask(
            "SELECT r.rolname, m.rolname FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.member"
            " JOIN pg_roles m ON m.oid = a.roleid JOIN pg_db_role_setting s ON s.setrole = r.oid AND s.setdatabase = 0"
            " WHERE 'role=' || m.rolname = ANY (s.setconfig) AND m.rolname = ANY (%s) AND NOT r.rolname = ANY (%s)",
            [role.name for role in requested if role.present],
            [role.name for role in requested],
        )
        return [Role(second, "second", present=False) for second, first in rows if second == names.second_login(first)]

    def _role(self, role: Role, found: tuple[Any, ...] | None) -> None:
        name = sql.Identifier(role.name)
        if found is None:
            self.change(f"role {role.name}", sql.SQL("CREATE ROLE {}").format(name))
            found = (False, False, -1, None, None, None, [])
        login, powers, limit, verifier, until, stored, groups = found
        if not login or powers:
            attributes = "LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"
            self.change(f"role {role.name}: {attributes}", sql.SQL("ALTER ROLE {} " + attributes).format(name))
        if limit != role.connection_limit:
            statement = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(name, sql.Literal(role.connection_limit))
            self.change(f"role {role.name}: connection limit {limit} -> {role.connection_limit}", statement)
        if verifier != role.verifier:
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(role.verifier))
            self.change(f"role {role.name}: {'new password' if role.verifier else 'no password'}", statement)
        if until not in (self._moment(role.valid_until), KEPT_OUT):
            statement = sql.SQL("ALTER ROLE {} VALID UNTIL {}").format(
                name, sql.Literal(role.valid_until or "infinity")
            )
            self.change(f"role {role.name}: valid until {role.valid_until or 'infinity'}", statement)
        self._settings(role, settings.parse(stored))
        allowed = (role.settings["role"],) if role.kind == "second" else self._groups(role.kind)
        for group in sorted(set(allowed) - set(groups)):
            self.change(
                f"role {role.name}: member of {group}", sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), name)
            )
        for group in sorted(set(groups) - set(allowed)):
            self.change(
                f"role {role.name}: no longer member of {group}",
                sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(group), name),
            )

    def _moment(self, text: str | None) -> str | None:
        if text is None:
            return None
        query = "SELECT to_char(%s::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
        return str(self.ask(query, text)[0][0])

    def _settings(self, role: Role, stored: Mapping[str, str]) -> None:
        """Set and reset what differs in the server's own form, and read it back."""
        name = sql.Identifier(role.name)
        needed = settings.differences(self.connection, stored, role.settings)
        for key, text in needed.items():
            if text is None:
                parts = sql.Identifier(*key.split("."))
                self.change(f"role {role.name}: {key} reset", sql.SQL("ALTER ROLE {} RESET {}").format(name, parts))
            else:
                statement = sql.SQL("ALTER ROLE {} SET {}").format(name, settings.assignment(key, text))
                self.change(f"role {role.name}: {key} = {text}", statement)
        if needed and not self.plan:
            self._read_back(role)

    def _groups(self, kind: str) -> tuple[str, ...]:
        """Return the predefined roles of a kind of role on this server."""
        found = GROUPS.get(kind, ())
        known = bool(found) and bool(self.ask("SELECT 1 FROM pg_roles WHERE rolname = %s", RESERVED_GROUP))
        return (*found, RESERVED_GROUP) if known else found

    def _read_back(self, role: Role) -> None:
        query = (
            "SELECT setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
            " WHERE r.rolname = %s AND s.setdatabase = 0"
        )
        rows = self.ask(query, role.name)
        left = settings.differences(self.connection, settings.parse(rows[0][0] if rows else ()), role.settings)
        if left:
            raise DatabaseError(
                "the server stored settings that differ from the request",
                where=f"role {role.name}",
                seen=", ".join(sorted(left)),
                run=f"psql -c '\\drds \"{role.name}\"'",
            )

    def _drop(self, role: Role) -> None:
        owned = self.ask(
            "SELECT count(*) FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid"
            " WHERE d.refclassid = 'pg_authid'::regclass AND r.rolname = %s AND d.deptype = 'o'",
            role.name,
        )[0][0]
        if owned:
            raise DatabaseError(
                f"role {role.name} cannot be dropped",
                where="database_roles",
                seen=f"it owns {owned} objects",
                allowed="a role that owns nothing",
                run=f"psql -c {shlex.quote(f'REASSIGN OWNED BY {identifier(role.name)} TO ...')} in each database",
            )
        name = sql.Identifier(role.name)
        self.change(
            f"role {role.name}: dropped, with its privileges",
            sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(name, name),
        )

    def database(self, name: str, owner: str, guard: bool) -> bool:
        """Create a database and record its guard; False if it does not exist yet because this is only a plan.

        `guard` makes destructive commands ask for confirmation (see database.guarded).
        """
        rows = self.ask(
            "SELECT r.rolname, (SELECT setconfig FROM pg_db_role_setting s"
            " WHERE s.setdatabase = d.oid AND s.setrole = 0)"
            " FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = %s",
            name,
        )
        mine = sql.Identifier(name)
        if not rows:
            statement = sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0")
            self.change(f"database {name}", statement.format(mine, sql.Identifier(owner)))
            rows = [(owner, None)]
        holder, stored = rows[0]
        if holder != owner:
            self.change(
                f"database {name}: owner {holder} -> {owner}",
                sql.SQL("ALTER DATABASE {} OWNER TO {}").format(mine, sql.Identifier(owner)),
            )
        found = settings.parse(stored)
        value = "on" if guard else "off"
        if found.get("provision.guard") != value:
            self.change(
                f"database {name}: provision.guard = {value}",
                sql.SQL("ALTER DATABASE {} SET provision.guard = {}").format(mine, sql.Literal(value)),
            )
        if "provision.profile" in found:  # set by earlier versions
            self.change(
                f"database {name}: provision.profile reset",
                sql.SQL("ALTER DATABASE {} RESET provision.profile").format(mine),
            )
        return bool(self.ask("SELECT 1 FROM pg_database WHERE datname = %s", name))

    def connect_privileges(self, name: str, owner: str, roles: Iterable[str]) -> None:
        """Grant CONNECT on a database to these roles only, and what its owner lacks to the owner."""
        rows = self.ask(
            "SELECT coalesce(r.rolname, 'PUBLIC'), x.privilege_type FROM pg_database d,"
            " aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x LEFT JOIN pg_roles r ON r.oid = x.grantee"
            " WHERE d.datname = %s",
            name,
        )
        found = {(str(role), str(kind)) for role, kind in rows if role != owner}
        expected = {(role, "CONNECT") for role in roles}
        expected |= {pair for pair in self.lacking("d", [name]).get(name, set()) if pair[0] == owner}
        self.align(f"database {name}", sql.SQL("DATABASE {}").format(sql.Identifier(name)), found, expected)

    def extensions(self, names: Sequence[str], newest: Sequence[str] = ("vector",)) -> None:
        """Create extensions in this database, and update those in `newest` to the version installed on the host."""
        rows = self.ask("SELECT e.extname, e.extversion, a.default_version FROM pg_extension e"
                        " JOIN pg_available_extensions a ON a.name = e.extname")  # fmt: skip
        found = {name: (version, available) for name, version, available in rows}
        for name in names:
            mine = sql.Identifier(name)
            if name not in found:
                fixed = self.ask(_SCHEMA, name)  # some, such as citus, can only be in the schema that they name
                place = sql.Identifier(fixed[0][0] if fixed else SHARED)
                self.change(f"extension {name}", sql.SQL("CREATE EXTENSION {} SCHEMA {}").format(mine, place))
            elif name in newest and found[name][0] != found[name][1]:
                old, new = found[name]
                self.change(f"extension {name}: {old} -> {new}", sql.SQL("ALTER EXTENSION {} UPDATE").format(mine))

    def closed(self, name: str) -> None:
        """Revoke CREATE on schema public from PUBLIC, which PostgreSQL 14 grants by default."""
        if self.ask(
            "SELECT 1 FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x"
            " WHERE n.nspname = 'public' AND x.grantee = 0 AND x.privilege_type = 'CREATE'"
        ):
            statement = sql.SQL("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            self.change(f"database {name}, schema public: REVOKE CREATE FROM PUBLIC", statement)

    def temporary(self, name: str) -> None:
        """Revoke TEMPORARY on a database of superusers from PUBLIC."""
        if self.ask(
            "SELECT 1 FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x"
            " WHERE d.datname = %s AND x.grantee = 0 AND x.privilege_type = 'TEMPORARY'",
            name,
        ):
            statement = sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name))
            self.change(f"database {name}: REVOKE TEMPORARY FROM PUBLIC", statement)

    def large_objects(self, owner: str = "") -> None:
        """Let only the owner of this database, and superusers, create large objects in it."""
        rows = self.ask(
            "SELECT f, coalesce(r.rolname, 'PUBLIC') FROM unnest(%s::text[]) f"
            " JOIN pg_proc p ON p.oid = ('pg_catalog.' || f)::regprocedure,"
            " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x LEFT JOIN pg_roles r ON r.oid = x.grantee"
            " WHERE x.grantee <> p.proowner",
            list(LARGE_OBJECTS),
        )
        for function in LARGE_OBJECTS:
            found = {(str(role), "EXECUTE") for name, role in rows if name == function and role in ("PUBLIC", owner)}
            expected = {(owner, "EXECUTE")} if owner else set()
            self.align(f"function {function}", sql.SQL("FUNCTION pg_catalog." + function), found, expected)

    def lacking(self, kind: str, names: Sequence[str]) -> dict[str, set[tuple[str, str]]]:
        """Return the privileges that the owners of databases (kind d) or schemas (n) were deprived of, by name."""
        found: dict[str, set[tuple[str, str]]] = {}
        for name, owner, privilege in self.ask(_LACKING, kind, list(names)):
            found.setdefault(str(name), set()).add((str(owner), str(privilege)))
        return found

    def align(
        self,
        label: str,
        what: sql.SQL | sql.Composed,
        found: set[tuple[str, str]],
        expected: set[tuple[str, str]],
        prefix: sql.SQL | sql.Composed = sql.SQL(""),  # noqa: B008 - it is immutable
    ) -> None:
        """Grant missing and revoke extra privileges. `found` and `expected` are pairs of role and privilege."""
        for verb, word, pairs in (("GRANT", "TO", expected - found), ("REVOKE", "FROM", found - expected)):
            for role, of_role in itertools.groupby(sorted(pairs), key=lambda pair: pair[0]):
                kinds = [kind for _, kind in of_role]
                whom = sql.SQL("PUBLIC") if role == "PUBLIC" else sql.Identifier(role)
                statement = sql.SQL("{}" + f"{verb} {', '.join(kinds)} ON {{}} {word} {{}}").format(prefix, what, whom)
                self.change(f"{label}: {verb} {', '.join(kinds)} {word} {role}", statement)


def _session(server: str, database: str, fleet: str = "") -> Connection:
    found = connect_pinned(f"{server} {conninfo({'dbname': database})}", application=APPLICATION)
    if fleet:  # each group converges its own roles, also while others are down
        found.execute("SET citus.enable_ddl_propagation TO off")
    return found


def converge(server: str, expected: Mapping[str, Any], *, plan: bool = False) -> list[str]:
    """Converge every database of `expected` and return the changes in order.

    `server` is a libpq string of the superuser without a database. `expected` has database, owner, guard (a boolean,
    see database.guarded), extensions, roles (see Role), extra_databases (name to owner), tenants (name and roles) and
    fleet ("", coordinator or worker; Citus gives a worker the schemas of tenants).
    Tenants that it does not list keep their roles with the settings of tenant_limits; grants are converged. Raises
    DatabaseError and UsageError.
    """
    from provision.host import grants
    from provision.host.fleet import rights
    from provision.host.tenants import catalog
    from provision.host.tenants import converge as tenants

    roles = [Role.of(each) for each in expected["roles"]]
    users = [role.name for role in roles if role.present]
    databases = {expected["database"]: expected["owner"], **expected.get("extra_databases", {})}
    main, given = expected["database"], {each["name"]: each["roles"] for each in expected.get("tenants", ())}
    declared = {name: [Role.of(each) for each in listed] for name, listed in given.items()}
    fleet = str(expected.get("fleet", ""))
    limits = TenantLimits(**expected.get("tenant_limits") or {"connections": 0, "size_mb": 0, "settings": {}})
    try:
        changes = []
        for name in MAINTAINED:
            with _session(server, name, fleet) as connection:
                access = Access(connection, plan=plan)
                access.closed(name)
                access.temporary(name)
                access.large_objects()
            changes += access.changes
        with _session(server, "postgres", fleet) as connection:
            changes += [] if plan else exchange.clean_up(connection)
            access = Access(connection, plan=plan)
            access.roles([role for role in roles if role.present])
            existing = [name for name, owner in databases.items() if access.database(name, owner, expected["guard"])]
            tenants.roles(access, main, declared)
            found = catalog.marked(access.ask, main)
            if limits.connections:
                access.roles(tenants.current(access, sorted(set(found) - set(declared)), limits))
            theirs = catalog.roles(access.ask, found)
            for name in existing:
                more = set(theirs) if name == main else set()
                access.connect_privileges(name, databases[name], set(users) - {databases[name]} | more)
        changes += access.changes
        for name in existing:
            with _session(server, name, fleet) as connection:
                access = Access(connection, plan=plan)
                access.extensions([each for each in expected["extensions"] if name == main or each != CITUS])
                grants.converge(access, [grants.Schema(SHARED, databases[name], roles, theirs)])
                access.large_objects(databases[name])
                with connection.transaction():  # logins look users up meanwhile, and a run may be killed
                    lookup.align(access, [role.name for role in roles if role.kind == "pooler" and role.present])
                if fleet and name == main:
                    rights.close(access)
                if fleet:  # the tables of tenants are on other groups
                    connection.execute("RESET citus.enable_ddl_propagation")
                if name == main and fleet != WORKER:
                    tenants.schemas(access, tenants.present(access, found) | declared)
                if (found or fleet) and name == main:
                    tenants.statistics(access, users)
            changes += access.changes
        with _session(server, "postgres", fleet) as connection:
            access = Access(connection, plan=plan)
            every = [*roles, *(role for listed in declared.values() for role in listed)]
            access.roles([*(role for role in roles if not role.present), *access.unused_second_logins(every)])
    except psycopg.Error as error:
        raise DatabaseError(
            "the server rejected a change of roles or grants",
            where=server,
            seen=str(error).strip(),
            run="fix the reported problem, then run site.yml --tags database again",
        ) from None
    return changes + access.changes
