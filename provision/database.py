"""The only door to psycopg: connections with time limits and a name, and advisory locks that never wait blindly.

Does IO. Refuses to hold a password: it comes from the URL, the environment or a password file and is never
printed. Works with the psycopg of Debian 12 (3.1) and newer.
"""

from __future__ import annotations

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from provision.errors import DatabaseError

CONNECT_TIMEOUT_S = 10


def connect(
    url: str = "",
    *,
    application: str,
    autocommit: bool = True,
    statement_timeout_ms: int | None = None,
    lock_timeout_ms: int | None = None,
) -> psycopg.Connection[tuple[object, ...]]:
    """Open a session to a libpq URL or key=value string; empty means the `PG*` environment.

    Time-outs are set after the connection is up, so that they work through any proxy. Raises DatabaseError that
    names host, port and database, never the password.
    """
    try:
        parameters = conninfo_to_dict(url)
        parameters.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
        parameters.setdefault("application_name", application)
        connection = psycopg.connect(make_conninfo("", **parameters), autocommit=autocommit)
    except psycopg.Error as error:
        raise DatabaseError(
            "cannot connect to PostgreSQL",
            where=describe(url),
            seen=str(error).strip(),
            allowed="a libpq URL (postgresql://user@host:port/database) or the PG* environment variables",
            run="provision doctor",
        ) from None
    for name, value in (("statement_timeout", statement_timeout_ms), ("lock_timeout", lock_timeout_ms)):
        if value is not None:
            connection.execute("SELECT set_config(%s, %s, false)", (name, f"{value}ms"))
    return connection


def describe(url: str) -> str:
    """Say where a URL leads (user, host, port, database) without its password."""
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.Error:
        return "a URL that libpq cannot read"
    shown = [f"{key}={parameters[key]}" for key in ("host", "port", "dbname", "user") if parameters.get(key)]
    return " ".join(shown) or "the PG* environment"
