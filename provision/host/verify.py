"""Verify a database by using it as the application does: log in, write a memory, find it by vector, roll back.

Verifies a host's timers too. Does IO and leaves nothing behind. The first failed check raises an error with the next
command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from provision.errors import DatabaseError, HostError
from provision.host import timers
from provision.plan.schema import Plan

TABLES = (
    "activities",
    "agent_tools",
    "agents",
    "evaluations",
    "feedback",
    "memories",
    "metrics",
    "sessions",
    "tools",
)
EXTENSIONS = ("uuid-ossp", "vector")
DIMENSIONS = 1536
TIMEOUT_MS = 10_000


@dataclass(frozen=True)
class Proof:
    """The verified facts: server version, extension versions, tables, migration version, TLS."""

    server: str
    extensions: dict[str, str]
    tables: tuple[str, ...]
    migration: int | None
    encrypted: bool


def prove(connection: psycopg.Connection[Any], *, tables: bool = True) -> Proof:
    """Verify the database of a new autocommit connection. Raises DatabaseError for the first check that fails.

    Without `tables`, as on a worker of a fleet, which has none of its own, only the login and the extensions.

    Runs in one transaction so that its settings end with it: behind a pooler the next client would inherit them.
    """
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{TIMEOUT_MS}ms",))
            return _prove(connection, tables=tables)
    except psycopg.Error as error:
        raise _failed(connection, str(error).strip(), "ansible-playbook site.yml -i INVENTORY") from None


def prove_timers(plan: Plan) -> None:
    """Verify that every timer with a schedule will elapse. Raises HostError with the faults and the command to run."""
    found = timers.faults([f"{each.name}.timer" for each in plan.timers if each.schedule])
    if found:
        raise HostError(
            "verification of the timers failed",
            where=plan.name,
            seen="; ".join(f"{name} {said}" for name, said in found.items()),
            allowed="timers with a next elapse time",
            run=plan.site(",".join(sorted({each.role for each in plan.timers if f"{each.name}.timer" in found}))),
        )


def _prove(connection: psycopg.Connection[Any], *, tables: bool) -> Proof:
    extensions = dict(connection.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1").fetchall())
    missing = sorted(set(EXTENSIONS) - set(extensions))
    if missing:
        raise _failed(
            connection, f"extension {missing[0]} is not installed in the database", "site.yml --tags pgvector,database"
        )
    there, migration = _schema(connection) if tables else ((), None)
    return Proof(
        server=connection.execute("SHOW server_version").fetchone()[0],  # type: ignore[index]
        extensions=extensions,
        tables=there,
        migration=migration,
        # Of this connection: behind a pooler the server sees the pooler's.
        encrypted=bool(connection.pgconn.ssl_in_use),
    )


def _schema(connection: psycopg.Connection[Any]) -> tuple[tuple[str, ...], int | None]:
    """Use the tables, and return their names and the version of the schema."""
    tables = tuple(
        str(row[0])
        for row in connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY(%s) ORDER BY 1",
            (list(TABLES),),
        )
    )
    if tables != TABLES:
        lacking = ", ".join(sorted(set(TABLES) - set(tables)))
        raise _failed(connection, f"missing tables: {lacking}", "provision migrate up")
    standby = connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    (_find if standby else _remember_and_find)(connection)
    version = connection.execute("SELECT version FROM schema_migrations WHERE NOT dirty").fetchone()
    return tables, None if version is None else int(version[0])


def _remember_and_find(connection: psycopg.Connection[Any]) -> None:
    vector = "[" + ",".join(["1"] + ["0"] * (DIMENSIONS - 1)) + "]"
    with connection.transaction(force_rollback=True):
        agent = connection.execute("INSERT INTO agents (name) VALUES ('provision-verify') RETURNING id").fetchone()
        assert agent is not None  # noqa: S101 - INSERT ... RETURNING returns a row or raises
        written = connection.execute(
            "INSERT INTO memories (agent_id, content, embedding) VALUES (%s, 'verify', %s::vector) RETURNING id",
            (agent[0], vector),
        ).fetchone()
        found = connection.execute(
            "SELECT id FROM memories WHERE agent_id = %s ORDER BY embedding <=> %s::vector LIMIT 1",
            (agent[0], vector),
        ).fetchone()
    if found is None or found != written:
        raise _failed(
            connection,
            "a new memory was not found by its vector",
            "psql -c 'REINDEX INDEX CONCURRENTLY memories_embedding_idx'",
        )


def _find(connection: psycopg.Connection[Any]) -> None:
    """Search by vector on a replica, which nothing can be written to."""
    vector = "[" + ",".join(["1"] + ["0"] * (DIMENSIONS - 1)) + "]"
    connection.execute("SELECT id FROM memories ORDER BY embedding <=> %s::vector LIMIT 1", (vector,)).fetchone()


def _failed(connection: psycopg.Connection[Any], seen: str, run: str) -> DatabaseError:
    info = connection.info
    return DatabaseError(
        "verification of the database failed",
        where=f"host={info.host} port={info.port} dbname={info.dbname} user={info.user}",
        seen=seen,
        run=run,
    )
