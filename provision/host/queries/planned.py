"""The plan of a normalised statement, without running it. Does IO.

The statement is prepared under its own parameters and planned generically: EXPLAIN without ANALYZE executes nothing.
In a session of the owner, in a read-only transaction that is rolled back, because planning can call functions of the
database's owner.
"""

from __future__ import annotations

import re

import psycopg

from provision.database import Connection, ask
from provision.errors import DatabaseError, UsageError
from provision.host.queries.statements import Reading, Statement

TIMEOUT_MS = 10_000
_NAME = "provision_queries"
_PLANNED = re.compile(r"\s*(?:/\*.*?\*/\s*)*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH|VALUES|TABLE)\b", re.I | re.S)


def find(reading: Reading, query_id: str) -> Statement:
    """Return the statement with an id; of several roles, the one that used most time. Raises UsageError."""
    found = [each for each in reading.statements if each.query_id == query_id]
    if not found:
        raise UsageError("no such statement", seen=query_id, allowed="an id that provision queries prints")
    return max(found, key=lambda each: each.counters.total_ms)


def explain(session: Connection, statement: Statement) -> list[str]:
    """Return the lines of EXPLAIN with the generic plan. Raises DatabaseError for a text that cannot be planned."""
    if statement.database != session.info.dbname:
        raise UsageError(
            "the statement belongs to another database", seen=statement.database, allowed=session.info.dbname
        )
    if not _PLANNED.match(statement.text):
        raise _refused(statement, "it is no SELECT, INSERT, UPDATE, DELETE or MERGE")
    try:
        with session.transaction(force_rollback=True):
            session.execute("SET TRANSACTION READ ONLY")
            session.execute("SELECT pg_catalog.set_config('statement_timeout', %s, true)", (f"{TIMEOUT_MS}ms",))
            session.execute("SET LOCAL search_path = public")
            session.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            # One message of the extended protocol holds one statement, whatever the text is.
            done = session.pgconn.prepare(_NAME.encode(), statement.text.encode())
            if done.status != psycopg.pq.ExecStatus.COMMAND_OK:
                raise _refused(statement, done.error_message.decode(errors="replace").strip().partition("\n")[0])
            parameters = session.pgconn.describe_prepared(_NAME.encode()).nparams
            nulls = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
            return [str(row[0]) for row in ask(session, f"EXPLAIN (COSTS) EXECUTE {_NAME}{nulls}")]
    finally:
        session.execute("DEALLOCATE ALL")


def _refused(statement: Statement, seen: str) -> DatabaseError:
    return DatabaseError(
        "the statement cannot be planned from its normalised text",
        where=f"statement {statement.query_id}",
        seen=seen,
        allowed="a statement whose constants can be parameters",
        run="provision logs --slow shows auto_explain's plans of slow executions",
    )
