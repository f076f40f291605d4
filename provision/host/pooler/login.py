"""Log in through the pooler as each role, with SCRAM on the client and server side. Does IO.

This also gives the pooler the SCRAM keys of a new password: until the first login with it, the pooler opens further
server connections with the keys of the old one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import psycopg
from psycopg.conninfo import make_conninfo

from provision import urls
from provision.database import connect, require_pooler
from provision.errors import DatabaseError

CACHED = "server login has been failing"
"""PgBouncer's answer for as long as its last login at the server failed: the attempt itself makes it try again."""
PAUSE_S = 0.5


def prove(url: str, passwords: Mapping[str, str], patience_s: float = 0) -> list[str]:
    """Log in as each role. Raises DatabaseError that names the first role that fails, never its password.

    A failure that PgBouncer remembers from an earlier login is tried again for `patience_s` seconds.
    """
    until = time.monotonic() + patience_s
    results = []
    for role, password in passwords.items():
        where = make_conninfo(urls.read(url).url, user=role)
        found = _attempt(where, password)
        while isinstance(found, DatabaseError) and CACHED in found.seen and time.monotonic() < until:
            time.sleep(PAUSE_S)
            found = _attempt(where, password)
        if isinstance(found, DatabaseError):
            raise found
        results.append(f"{role} logged in" if found == role else f"{role} logged in as {found}")
    return results


def _attempt(where: str, password: str) -> str | DatabaseError:
    """Log in once; return the session's user, or the error of the login or of its first query."""
    try:
        with connect(make_conninfo(where, password=password), application="provision pool") as session:
            require_pooler(session)
            row = session.execute("SELECT session_user::text").fetchone()
    except DatabaseError as error:
        return error
    except psycopg.Error as error:
        return DatabaseError("login through the pooler failed", where=urls.describe(where), seen=str(error).strip())
    return str(row[0]) if row else ""
