"""Log roles in through the pooler, down to a session of the server: SCRAM on both sides. Does IO.

Besides proving it, this hands the pooler the keys that a new password makes: until somebody has logged in with it the
pooler would open further server sessions with the old one's.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg.conninfo import make_conninfo

from provision.database import connect, describe, require_pooler
from provision.errors import DatabaseError


def prove(url: str, passwords: Mapping[str, str]) -> list[str]:
    """Log in as each role. Raises DatabaseError that names the first role that cannot, never its password."""
    said = []
    for role, password in passwords.items():
        where = make_conninfo(url, user=role)
        try:
            with connect(make_conninfo(where, password=password), application="provision pool") as session:
                require_pooler(session)
                row = session.execute("SELECT session_user").fetchone()
        except psycopg.Error as error:
            raise DatabaseError(
                "the server refused a session of the pooler", where=describe(where), seen=str(error).strip()
            ) from None
        said.append(f"{role} logged in" if row == (role,) else f"{role} logged in as {row}")
    return said
