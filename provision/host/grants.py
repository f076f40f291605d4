"""Converge owner, grants and default privileges of schemas and their objects. Does IO.

Each step reads all requested schemas in one query, so that many tenants cost no more round trips than one. A step reads
after the changes of the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from provision.host.access import SHARED, Access, Role

TABLE_PRIVILEGES: Mapping[str, frozenset[str]] = {
    "write": frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"}),
    "read": frozenset({"SELECT"}),
}
SEQUENCE_PRIVILEGES: Mapping[str, frozenset[str]] = {
    "write": frozenset({"SELECT", "USAGE"}),
    "read": frozenset({"SELECT"}),
}
MIGRATION_TABLES = ("schema_migrations", "schema_migrations_history")
"""Only the owner may write these, regardless of default privileges."""

# pg_get_userbyid looks up one role; a join with pg_roles would read every role for each object.
_GRANTEE = "CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee)::text END"
OWNERS = "SELECT nspname::text, pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = ANY(%s) ORDER BY 1"
"""Schemas that exist, with their owners."""
_USAGE = f"""
SELECT n.nspname::text, {_GRANTEE}, x.privilege_type
FROM pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x WHERE n.nspname = ANY(%s)
"""  # noqa: S608 - constants of this module
_FINER = f"""
SELECT n.nspname::text, c.relname::text, c.relkind = 'S', NULL, {_GRANTEE}, x.privilege_type
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid, aclexplode(c.relacl) x
WHERE n.nspname = ANY(%s) AND x.is_grantable AND x.grantee <> c.relowner
UNION ALL SELECT n.nspname::text, c.relname::text, false, a.attname::text, {_GRANTEE}, x.privilege_type
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid JOIN pg_attribute a ON a.attrelid = c.oid,
aclexplode(a.attacl) x WHERE n.nspname = ANY(%s) AND a.attacl IS NOT NULL
ORDER BY 1, 2, 4, 5, 6
"""  # noqa: S608 - constants of this module
_OBJECTS = f"""
SELECT n.nspname::text, c.relname::text, c.relkind = 'S', pg_get_userbyid(c.relowner)::text,
    ARRAY(SELECT {_GRANTEE} || ' ' || x.privilege_type FROM aclexplode(c.relacl) x),
    ARRAY(SELECT w.privilege_type
        FROM aclexplode(acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)) w
        WHERE c.relacl IS NOT NULL AND w.grantee = c.relowner AND NOT EXISTS (SELECT FROM aclexplode(c.relacl) x
            WHERE x.grantee = c.relowner AND x.privilege_type = w.privilege_type))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('e', 'i')) ORDER BY 1, 2
"""  # noqa: S608 - constants of this module
_FUTURE = f"""
SELECT n.nspname::text, pg_get_userbyid(d.defaclrole)::text, d.defaclobjtype::text, {_GRANTEE}, x.privilege_type
FROM pg_default_acl d JOIN pg_namespace n ON n.oid = d.defaclnamespace, aclexplode(d.defaclacl) x
WHERE n.nspname = ANY(%s)
"""  # noqa: S608 - constants of this module


@dataclass(frozen=True)
class Schema:
    """A schema as it should be: its owner, and the roles whose privileges in it are compared."""

    name: str
    owner: str
    roles: Sequence[Role]
    strangers: Sequence[str] = ()
    """Roles that get no privilege in it."""
    open_: bool = True
    """Keep USAGE of PUBLIC where it is granted."""

    @property
    def users(self) -> list[Role]:
        """The roles that read or write its tables."""
        others = (each for each in self.roles if each.name != self.owner)
        return [each for each in others if each.present and each.kind in TABLE_PRIVILEGES]

    @property
    def managed(self) -> set[str]:
        """The grantees that are compared; grants to others stay."""
        return {each.name for each in self.roles} - {self.owner} | {"PUBLIC", *self.strangers}

    def expected(self, kinds: Mapping[str, frozenset[str]]) -> set[tuple[str, str]]:
        """Return the pairs of role and privilege on an object with these privileges by kind of role."""
        return {(each.name, kind) for each in self.users for kind in kinds[each.kind]}


def converge(access: Access, requested: Iterable[Schema]) -> None:
    """Converge schemas of the session's database that exist, and the objects in them."""
    every = {each.name: each for each in requested}
    for step in (_owners, _usage, _finer, _objects, _future):
        step(access, every)


def _owners(access: Access, every: Mapping[str, Schema]) -> None:
    for name, owner in access.ask(OWNERS, list(every)):
        if owner != every[name].owner:
            statement = sql.SQL("ALTER SCHEMA {} OWNER TO {}")
            mine, new = sql.Identifier(name), sql.Identifier(every[name].owner)
            access.change(f"schema {name}: owner", statement.format(mine, new))


def _usage(access: Access, every: Mapping[str, Schema]) -> None:
    found = _by_schema(access.ask(_USAGE, list(every)))
    lacking = access.lacking("n", list(every))
    for name, each in every.items():
        managed = each.managed
        pairs = {(who, kind) for who, kind in found.get(name, ()) if who in managed}
        expected = {(role.name, "USAGE") for role in each.users}
        expected |= {("PUBLIC", "USAGE")} & pairs if each.open_ else set()
        expected |= {pair for pair in lacking.get(name, ()) if pair[0] == each.owner}
        access.align(f"schema {name}", sql.SQL("SCHEMA {}").format(sql.Identifier(name)), pairs, expected)


def _finer(access: Access, every: Mapping[str, Schema]) -> None:
    """Revoke grant options and column privileges, which the comparison of table grants does not cover."""
    names = list(every)
    for schema, rows in _by_schema(access.ask(_FINER, names, names)).items():
        managed = every[schema].managed
        for name, is_sequence, column, who, kind in rows:
            if who not in managed:
                continue
            word = "SEQUENCE" if is_sequence else "TABLE"
            right = f"{kind} " + ("({})" if column else "")
            verb = f"REVOKE {right}" if column else f"REVOKE GRANT OPTION FOR {right}"
            whom = sql.SQL("PUBLIC") if who == "PUBLIC" else sql.Identifier(who)
            parts = [sql.Identifier(column)] if column else []
            # CASCADE also revokes what the role granted to others: only the role itself could revoke that otherwise.
            statement = sql.SQL(f"{verb} ON {word} {{}} FROM {{}} CASCADE").format(
                *parts, sql.Identifier(schema, name), whom
            )
            label = f"REVOKE {kind} ({column})" if column else f"REVOKE GRANT OPTION FOR {kind}"
            access.change(f"{word.lower()} {_shown(schema, name)}: {label} FROM {who}", statement)


def _objects(access: Access, every: Mapping[str, Schema]) -> None:
    """Converge grants on tables, views and sequences, except those of extensions and identity columns.

    Their owner gets back what was revoked from it.
    """
    for schema, rows in _by_schema(access.ask(_OBJECTS, list(every))).items():
        each = every[schema]
        managed = each.managed
        tables, sequences = each.expected(TABLE_PRIVILEGES), each.expected(SEQUENCE_PRIVILEGES)
        for name, is_sequence, owner, entries, lacking in rows:
            pairs = {(who, kind) for who, _, kind in (entry.rpartition(" ") for entry in entries)}
            expected = sequences if is_sequence else tables
            if name in MIGRATION_TABLES:
                expected = {pair for pair in expected if pair[1] == "SELECT"}
            expected = expected | {(owner, kind) for kind in lacking if owner == each.owner}
            word = "SEQUENCE" if is_sequence else "TABLE"
            object_ = sql.SQL(word + " {}").format(sql.Identifier(schema, name))
            found = {pair for pair in pairs if pair[0] in managed}
            access.align(f"{word.lower()} {_shown(schema, name)}", object_, found, expected)


def _future(access: Access, every: Mapping[str, Schema]) -> None:
    rows = _by_schema(access.ask(_FUTURE, list(every)))
    for name, each in every.items():
        managed = each.managed
        for letter, word, kinds in (("r", "TABLES", TABLE_PRIVILEGES), ("S", "SEQUENCES", SEQUENCE_PRIVILEGES)):
            found = {
                (who, kind)
                for owner, kind_of, who, kind in rows.get(name, ())
                if owner == each.owner and kind_of == letter and who in managed
            }
            prefix = sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA {} ").format(
                sql.Identifier(each.owner), sql.Identifier(name)
            )
            where = "" if name == SHARED else f" of schema {name}"
            access.align(f"future {word.lower()}{where}", sql.SQL(word), found, each.expected(kinds), prefix)


def _by_schema(rows: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    """Group rows by their first column."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name, *rest in rows:
        found.setdefault(str(name), []).append(tuple(rest))
    return found


def _shown(schema: str, name: str) -> str:
    return name if schema == SHARED else f"{schema}.{name}"
