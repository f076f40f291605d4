"""Search with every vector index of a restored cluster, without a superuser's rights. Does IO.

An operator for a column's type may be its owner's own, and would run with the rights of the session.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psycopg import sql
from psycopg.conninfo import make_conninfo

from provision.database import Connection, connect_pinned
from provision.host.backup.tool import BackupError

READER = "provision_restore_test_reader"


def run(url: Callable[[str, str], str], database: str) -> dict[str, int]:
    """Search as a new role that may read those tables and nothing else; for a scratch cluster, which keeps the role.

    `url` gives the address of a user and a database. Returns the rows found by index. Raises BackupError if an index is
    not used.
    """
    role, password = sql.Identifier(READER), secrets.token_urlsafe(32)
    with connect_pinned(url("postgres", database), application="provision drill") as session:
        session.execute(sql.SQL("CREATE ROLE {} LOGIN BYPASSRLS PASSWORD {}").format(role, sql.Literal(password)))
        session.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(database), role))
        indexes = _vector_indexes(session)
        for each in indexes:
            session.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.SQL(each.schema), role))
            session.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(sql.SQL(each.table), role))
    where = make_conninfo(url(READER, database), password=password)
    with connect_pinned(where, application="provision drill") as session:
        return _search(session, indexes)


@dataclass(frozen=True)
class _VectorIndex:
    """Names and the operator as the server quotes them."""

    name: str
    schema: str
    table: str
    column: str
    operator: str
    dimensions: int


def _vector_indexes(session: Connection) -> list[_VectorIndex]:
    rows = session.execute(
        "SELECT i.indexrelid::regclass::text, t.relnamespace::regnamespace::text, i.indrelid::regclass::text,"
        " quote_ident(a.attname), format('OPERATOR(%s.%s)', o.oprnamespace::regnamespace, o.oprname), a.atttypmod"
        " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid"
        " JOIN pg_am m ON m.oid = c.relam"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " JOIN pg_opclass p ON p.oid = i.indclass[0]"
        " JOIN pg_amop x ON x.amopfamily = p.opcfamily AND x.amoppurpose = 'o' JOIN pg_operator o ON o.oid = x.amopopr"
        " WHERE m.amname IN ('hnsw', 'ivfflat') AND a.atttypmod > 0"
    ).fetchall()
    return [
        _VectorIndex(str(name), str(schema), str(table), str(column), str(operator), int(str(size)))
        for name, schema, table, column, operator, size in rows
    ]


def _search(session: Connection, indexes: Sequence[_VectorIndex]) -> dict[str, int]:
    found = {}
    session.execute("SET enable_seqscan = off")
    session.execute("SET enable_sort = off")
    for each in indexes:
        index, table, column = each.name, each.table, each.column
        probe = "[" + ",".join(["1"] * each.dimensions) + "]"
        query = f"SELECT 1 FROM {table} ORDER BY {column} {each.operator} %s LIMIT 10"  # noqa: S608 - quoted by the server
        lines = session.execute(f"EXPLAIN {query}", (probe,)).fetchall()
        if not any(str(index).split(".")[-1].strip('"') in str(line[0]) for line in lines):
            raise BackupError("a vector search did not use its index", where=str(index), seen=str(lines[-1][0]))
        rows = len(session.execute(query, (probe,)).fetchall())
        there = session.execute(
            f"SELECT count(*) FROM (SELECT FROM {table} WHERE {column} IS NOT NULL LIMIT 10) t"  # noqa: S608
        ).fetchone()
        if there is None or rows < int(str(there[0])):
            raise BackupError("a vector search found too few rows", where=str(index), seen=f"{rows} of {there}")
        found[str(index)] = rows
    return found
