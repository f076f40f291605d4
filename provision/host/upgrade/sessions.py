"""Sessions of the superuser in the clusters of an upgrade. Does IO, as root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from provision.database import Connection, ask, connect_pinned
from provision.errors import DatabaseError
from provision.plan.schema import Plan
from provision.system import as_user


@contextmanager
def session_of(plan: Plan, database: str = "postgres") -> Iterator[Connection]:
    """Yield a superuser's session in a database. Raises DatabaseError, also for a statement that fails."""
    with as_user():
        session = connect_pinned(plan.server.url(database), application="provision upgrade")
    try:
        with session:
            yield session
    except psycopg.Error as error:
        raise DatabaseError(
            "the server refused a statement", where=f"database {database}", seen=str(error).strip()
        ) from None


def databases(plan: Plan) -> list[str]:
    """Name the databases that accept connections."""
    with session_of(plan) as session:
        return [str(row[0]) for row in ask(session, "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")]
