"""Properties of a database that pg_dump without --create omits. Does IO.

Encoding, locale and tablespace are given to CREATE DATABASE; owner, privileges with their grantors, settings (those of
roles in this database too), connection limit, comment, security labels and the template mark are applied afterwards and
read back. A dump's manifest holds the state at the time of the dump, for a host without the original database.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql

from provision.database import Connection
from provision.errors import DatabaseError
from provision.host import settings

PROVIDER_SINCE, RULES_SINCE, LOCALE_SINCE = 150000, 160000, 170000
"""Servers that know datlocprovider, daticurules, and datlocale (called daticulocale before)."""
PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
_PRIVILEGES = (
    "SELECT pg_get_userbyid(x.grantor)::text, CASE x.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(x.grantee)::text END,"
    " x.privilege_type, x.is_grantable FROM pg_database d, aclexplode(d.datacl) x WHERE d.datname = %s"
)
_SETTINGS = (
    "SELECT coalesce(r.rolname::text, ''), s.setconfig FROM pg_db_role_setting s"
    " JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = %s"
)
_LABELS = (
    "SELECT l.provider, l.label FROM pg_shseclabel l JOIN pg_database d ON d.oid = l.objoid"
    " WHERE l.classoid = 'pg_database'::regclass AND d.datname = %s ORDER BY 1"
)


def read(session: Connection, database: str) -> dict[str, Any] | None:
    """Return the state of a database as plain values, for JSON; None where there is no such database."""
    version = session.info.server_version
    provider = sql.SQL("datlocprovider::text" if version >= PROVIDER_SINCE else "'c'")
    locale = sql.SQL(
        "datlocale" if version >= LOCALE_SINCE else "daticulocale" if version >= PROVIDER_SINCE else "NULL::text"
    )
    rules = sql.SQL("daticurules" if version >= RULES_SINCE else "NULL::text")
    query = sql.SQL(
        "SELECT pg_get_userbyid(datdba)::text, pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text,"
        " {}, {}, {}, t.spcname::text, datconnlimit, datistemplate, datacl IS NULL,"
        " shobj_description(d.oid, 'pg_database')"
        " FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE datname = %s"
    )
    row = session.execute(query.format(provider, locale, rules), (database,)).fetchone()
    if row is None:
        return None
    names = ("owner", "encoding", "collate", "ctype", "provider", "locale", "rules", "tablespace", "limit", "template",
             "default_privileges", "comment")  # fmt: skip
    stored = session.execute(_SETTINGS, (database,)).fetchall()
    return {
        **dict(zip(names, row, strict=True)),
        "privileges": [list(each) for each in session.execute(_PRIVILEGES, (database,))],
        "settings": {str(role): settings.parse(entries) for role, entries in stored},  # type: ignore[arg-type]
        "labels": [list(each) for each in session.execute(_LABELS, (database,))],
    }


def creation(state: Mapping[str, Any], major: int) -> sql.Composed:
    """Return the options of CREATE DATABASE ... TEMPLATE template0 that cannot be changed later, for a server's major.

    The provider is named even where it is libc, for template0 may have another.
    """
    options = [
        sql.SQL("{} {}").format(sql.SQL(word), sql.Literal(state[key]))
        for word, key in (("ENCODING", "encoding"), ("LC_COLLATE", "collate"), ("LC_CTYPE", "ctype"))
    ]
    provider = PROVIDERS[state["provider"]]
    if major * 10000 >= PROVIDER_SINCE:
        options.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL(provider)))
    if provider != "libc":
        word = "ICU_LOCALE" if provider == "icu" else "BUILTIN_LOCALE"
        options.append(sql.SQL("{} {}").format(sql.SQL(word), sql.Literal(state["locale"])))
    if state["rules"]:
        options.append(sql.SQL("ICU_RULES {}").format(sql.Literal(state["rules"])))
    options.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(state["tablespace"])))
    return sql.SQL(" ").join(options)


def apply(session: Connection, database: str, state: Mapping[str, Any]) -> None:
    """Give a database this state and read it back. Raises DatabaseError for a difference, psycopg.Error."""
    name = sql.Identifier(database)

    def alter(what: str, *parts: sql.Composable) -> None:
        session.execute(sql.SQL("ALTER DATABASE {} " + what).format(name, *parts))

    alter("OWNER TO {}", sql.Identifier(state["owner"]))
    for role, entries in state["settings"].items():
        target = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), name) if role else None
        for key, text in entries.items():
            statement = sql.SQL("ALTER {} SET {}").format(
                target or sql.SQL("DATABASE {}").format(name), settings.assignment(key, text)
            )
            session.execute(statement)
    _privileges(session, name, state)
    alter("CONNECTION LIMIT {}", sql.Literal(state["limit"]))
    session.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(state["comment"])))
    for provider, label in state["labels"]:
        session.execute(
            sql.SQL("SECURITY LABEL FOR {} ON DATABASE {} IS {}").format(
                sql.Identifier(provider), name, sql.Literal(label)
            )
        )
    if differing := differences(session, database, state):
        raise DatabaseError(
            "the restored database differs from the original", where=database, seen="; ".join(differing)
        )
    if state["template"]:  # last: the server refuses to drop a template
        alter("IS_TEMPLATE true")


def _privileges(session: Connection, name: sql.Identifier, state: Mapping[str, Any]) -> None:
    """Grant as the original grantors did; a role that grants its own rights on needs its grant option first."""
    if state["default_privileges"]:
        return
    owner = sql.Identifier(state["owner"])
    session.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(name, owner))
    later = [each for each in state["privileges"] if each[0] != state["owner"]]
    for grantor, grantee, privilege, grantable in [*(p for p in state["privileges"] if p not in later), *later]:
        statement = sql.SQL(f"GRANT {privilege} ON DATABASE {{}} TO {{}}{{}}").format(
            name,
            sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
            sql.SQL(" WITH GRANT OPTION" if grantable and grantee != state["owner"] else ""),
        )
        with session.transaction():
            session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(grantor)))
            session.execute(statement)


def differences(session: Connection, database: str, state: Mapping[str, Any]) -> list[str]:
    """List the differences between a database and a state, each as one clause."""
    seen = read(session, database)
    if seen is None:
        return [f"database {database} does not exist"]
    found = [
        f"{key} {seen[key]!r} instead of {state[key]!r}"
        for key in ("owner", "encoding", "collate", "ctype", "provider", "locale", "rules", "tablespace", "limit",
                    "comment", "labels")
        if seen[key] != state[key]
    ]  # fmt: skip
    if sorted(seen["privileges"]) != sorted(state["privileges"]):
        found.append(f"privileges {seen['privileges']} instead of {state['privileges']}")
    for role in sorted({*seen["settings"], *state["settings"]}):
        left = settings.differences(session, seen["settings"].get(role, {}), state["settings"].get(role, {}))
        found += [f"setting {name}{f' of role {role}' if role else ''}" for name in left]
    return found
