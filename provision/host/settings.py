"""Settings stored for a role or a database (pg_db_role_setting): compared in the server's own form.

Does IO. The server stores a value as written but shows it in its own form: 65536kB is 64MB, DateStyle "iso, mdy" is
"ISO, MDY", TimeZone is timezone. `normal` asks the server for that form, so that equal values compare equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import psycopg
from psycopg import sql

from provision.database import Connection
from provision.tuning import lists


def parse(entries: Iterable[str] | None) -> dict[str, str]:
    """Return the settings of a row of pg_db_role_setting (setconfig) by name."""
    return dict(entry.split("=", 1) for entry in entries or ())


def assignment(name: str, text: str) -> sql.Composed:
    """Return `name = value` for ALTER ROLE or ALTER DATABASE ... SET; a list of names element by element.

    Raises ValueError for a list that cannot be split.
    """
    parts = sql.Identifier(*name.split("."))
    values = lists.elements(name, text) or ("",) if lists.is_quoted(name) else (text,)
    return sql.SQL("{} = {}").format(parts, sql.SQL(", ").join(map(sql.Literal, values)))


def normal(connection: Connection, name: str, text: str) -> str:
    """Return a value as the server shows it. Raises psycopg.Error for a value that it refuses, ValueError for a list.

    The connection must be in autocommit mode: the value then applies to this one statement.
    """
    if lists.is_quoted(name):
        return lists.text(lists.elements(name, text))
    row = connection.execute("SELECT set_config(%s, %s, true)", (name, text)).fetchone()
    return str(row[0]) if row else text


def same(connection: Connection, name: str, one: str, other: str) -> bool:
    """Return whether two stored values are equal for the server; a value that it refuses equals only itself."""
    if one == other:
        return True
    try:
        return normal(connection, name, one) == normal(connection, name, other)
    except (psycopg.Error, ValueError):
        return False


def differences(
    connection: Connection, stored: Mapping[str, str], requested: Mapping[str, str]
) -> dict[str, str | None]:
    """Return what must be set (name -> text) or reset (name -> None). Names are compared without case."""
    found = {name.lower(): (name, text) for name, text in stored.items()}
    asked = {name.lower(): (name, text) for name, text in requested.items()}
    needed: dict[str, str | None] = {}
    for key in sorted(set(found) | set(asked)):
        if key not in asked:
            needed[found[key][0]] = None
            continue
        name, text = asked[key]
        if key not in found or not same(connection, name, found[key][1], text):
            needed[name] = text
    return needed
