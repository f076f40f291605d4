"""Log in through the pooler as each role, with SCRAM on the client and server side. Does IO.

This also gives the pooler the SCRAM keys of a new password: until the first login with it, the pooler opens further
server connections with the keys of the old one.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg.conninfo import make_conninfo

from provision import urls
from provision.database import connect, require_pooler
from provision.errors import DatabaseError


def prove(url: str, passwords: Mapping[str, str]) -> list[str]:
    """Log in as each role. Raises DatabaseError that names the first role that fails, never its password."""
    results = []
    for role, password in passwords.items():
        where = make_conninfo(urls.read(url).url, user=role)
        try:
            with connect(make_conninfo(where, password=password), application="provision pool") as session:
                require_pooler(session)
                row = session.execute("SELECT session_user").fetchone()
        except psycopg.Error as error:
            raise DatabaseError(
                "login through the pooler failed", where=urls.describe(where), seen=str(error).strip()
            ) from None
        results.append(f"{role} logged in" if row == (role,) else f"{role} logged in as {row}")
    return results
