"""Scratch databases: created under a unique name, and dropped only if proved to be ours.

Does IO. The proof is the database's oid, noted when it was created, together with its name, which ends in a random
token. Both are compared in the session that drops: a name alone may belong to another database by then.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg import sql

from provision.database import Connection
from provision.errors import DatabaseError
from provision.plan import names


@dataclass(frozen=True)
class Scratch:
    """A scratch database: its name and its oid."""

    name: str
    oid: int


EMPTY = sql.SQL("TEMPLATE template0")


def create(session: Connection, name: str, options: sql.Composable = EMPTY) -> Scratch:
    """Create the database `name`, which names.scratch made. Raises psycopg.Error."""
    session.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), options))
    found = find(session, name)
    if found is None:
        raise DatabaseError("a database that was just created is gone", where=name)
    return found


def find(session: Connection, name: str) -> Scratch | None:
    """Return the database with this name, None if there is none."""
    row = session.execute("SELECT oid::bigint FROM pg_database WHERE datname = %s", (name,)).fetchone()
    return Scratch(name, int(str(row[0]))) if row else None


def drop(session: Connection, scratch: Scratch) -> bool:
    """Drop a scratch database and end its sessions; False if it is gone or has another name by now.

    Raises DatabaseError for a name that names.scratch did not make, psycopg.Error.
    """
    if not names.SCRATCH.fullmatch(scratch.name):
        raise DatabaseError("refused to drop a database that is not a scratch database", where=scratch.name)
    if find(session, scratch.name) != scratch:
        return False
    name = sql.Identifier(scratch.name)
    if session.execute("SELECT 1 FROM pg_database WHERE oid = %s AND datistemplate", (scratch.oid,)).fetchone():
        session.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(name))
    session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
    return True


def drop_role(session: Connection, name: str) -> bool:
    """Drop the role that loads a scratch database and has its name; False if there is none, or it owns something."""
    if (
        not names.SCRATCH.fullmatch(name)
        or not session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s AND NOT rolsuper", (name,)).fetchone()
    ):
        return False
    try:
        session.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
    except psycopg.errors.DependentObjectsStillExist:
        return False
    return True
