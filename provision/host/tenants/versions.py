"""The versions of many tenants, read without running their code. Does IO, changes nothing.

One query finds the version tables; each is read by COPY, which plans nothing (see `plain`). A tenant owns its table and
can lock, fill or replace it: its version is then unknown, and those of the others are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from provision.database import Connection
from provision.errors import DatabaseError
from provision.host import plain
from provision.host.migrate.files import NONE
from provision.host.migrate.ledger import Ledger, State
from provision.plan.tenants import SHARED

TABLE = "schema_migrations"
LIMITS = {"statement_timeout": "5s", "lock_timeout": "1s", "row_security": "off"}
"""Of each read. Without row_security, policies of a tenant are an error for every role, and never run."""
PATIENCE = 5
"""Reads that may time out; after these, none waits."""
HURRY = {"statement_timeout": "100ms", "lock_timeout": "1ms"}
_TABLES = """
SELECT n.nspname::text, CASE WHEN c.relkind <> 'r' THEN 'is not an ordinary table'
    WHEN ARRAY(SELECT a.attname::text || ' ' || format_type(a.atttypid, NULL) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1)
        <> ARRAY['dirty boolean', 'version bigint'] THEN 'belongs to another tool' ELSE '' END
FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid WHERE n.nspname = ANY(%s) AND c.relname = %s
"""


def read(session: Connection, schemas: Sequence[str], table: str = TABLE) -> dict[str, State | str]:
    """Return the version of each schema, or why it cannot be read.

    Raises UsageError for a name of a table that is too long, DatabaseError if the connection is lost.
    """
    Ledger(session, SHARED, table)  # refuses the name
    rows = session.execute(_TABLES, (list(schemas), table)).fetchall()
    tables = {str(schema): str(why) for schema, why in rows}
    found: dict[str, State | str] = {}
    slow = 0
    with _limited(session):
        for schema in schemas:
            why = tables.get(schema)
            if why is None:
                found[schema] = State(NONE, dirty=False)
                continue
            try:
                found[schema] = f"{schema}.{table} {why}" if why else _state(session, schema, table)
            except psycopg.Error as error:
                if session.closed:
                    raise DatabaseError("the connection was lost", seen=str(error).strip()) from None
                found[schema] = f"{schema}.{table} cannot be read: {str(error).strip().partition(chr(10))[0]}"
                slow += isinstance(error, (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled))
                if slow == PATIENCE:
                    _set(session, HURRY)
    return found


def _state(session: Connection, schema: str, table: str) -> State | str:
    rows = plain.values(session, sql.Identifier(schema, table), ("version", "dirty"), most=2)
    if len(rows) > 1:
        return f"{schema}.{table} has more than one row"
    if any(None in row for row in rows):
        return f"{schema}.{table} has a row without a version"
    return State(int(str(rows[0][0])), rows[0][1] == "t") if rows else State(NONE, dirty=False)


@contextmanager
def _limited(session: Connection) -> Iterator[None]:
    """Apply LIMITS to a session and restore its own."""
    names = list(LIMITS)
    rows = session.execute("SELECT n, current_setting(n) FROM unnest(%s::text[]) n", (names,)).fetchall()
    _set(session, LIMITS)
    try:
        yield
    finally:
        if not session.closed:
            _set(session, {str(name): str(value) for name, value in rows})


def _set(session: Connection, settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        session.execute("SELECT set_config(%s, %s, false)", (name, value))
