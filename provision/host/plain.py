"""Read tables of other roles as a superuser, without running their owners' code. Does IO, changes nothing.

A query of a table is planned first, and the planner evaluates what is constant in its index predicates and expressions,
statistics, constraints and partition bounds: functions of the owner would run with the rights of the session. COPY of
a table plans nothing. It runs only output functions of types, which only a superuser creates, and refuses views.
pg_dump reads rows in the same way (manual, "COPY"; CVE-2018-1058 concerns names alone).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import psycopg
from psycopg import sql

from provision.database import Connection
from provision.errors import DatabaseError

HEADER = b"PGCOPY\n\xff\r\n\0"
HEADER_LENGTH = 19
"""Of the binary format: signature, flags, length of the extension (manual, "COPY", "Binary Format")."""
TRAILER = b"\xff\xff"
_TABLES = """
WITH RECURSIVE family AS (
  SELECT oid AS top, oid AS member FROM pg_class WHERE relkind IN ('r', 'p')
  UNION SELECT f.top, i.inhrelid FROM family f JOIN pg_inherits i ON i.inhparent = f.member)
SELECT format('%I.%I', n.nspname, c.relname), ARRAY(
    SELECT format('%I.%I', mn.nspname, m.relname) FROM family f JOIN pg_class m ON m.oid = f.member
    JOIN pg_namespace mn ON mn.oid = m.relnamespace
    WHERE f.top = c.oid AND m.relkind = 'r' AND m.relpersistence <> 't'),
  coalesce((SELECT quote_ident(a.attname) FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ORDER BY a.attlen < 0, a.attlen, a.attnum LIMIT 1), ''),
  c.relpersistence = 'p',
  EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1
"""


@dataclass(frozen=True)
class Table:
    """A table that is not temporary; names as the server quotes them."""

    name: str
    members: tuple[str, ...]
    """Tables with its rows: itself, partitions, and tables that inherit from it."""
    column: str
    """Its narrowest column, "" for none."""
    permanent: bool
    of_extension: bool


def tables(session: Connection) -> dict[str, Table]:
    """Return the tables of a database by name, those of extensions too."""
    rows = session.execute(_TABLES).fetchall()
    return {str(row[0]): Table(str(row[0]), tuple(row[1]), str(row[2]), *map(bool, row[3:])) for row in rows}  # type: ignore[arg-type]


def counts(session: Connection, known: Mapping[str, Table]) -> dict[str, int]:
    """Count the rows of each table, as count(*) does: with those of partitions and of tables that inherit from it.

    Raises DatabaseError with the table.
    """
    own = {}
    for table in known.values():
        columns = f" ({table.column})" if table.column else ""
        own[table.name] = sum(1 for _ in _rows(session, table, f"{table.name}{columns}", "text"))
    return {table.name: sum(own[each] for each in table.members) for table in known.values()}


def digests(session: Connection, known: Mapping[str, Table]) -> dict[str, tuple[int, int]]:
    """Return rows and checksum of each table: the sum of a hash of each row's binary form, whatever their order.

    Generated columns do not count: the server computes them from the others. Partitions are counted as in `counts`,
    those that are not in `known` excepted. Raises DatabaseError with the table.
    """
    own = {}
    for table in known.values():
        rows = total = 0
        for row in _rows(session, table, table.name, "binary"):
            rows += 1
            total += int.from_bytes(hashlib.sha256(row).digest()[:8], "big") >> 4
        own[table.name] = rows, total
    parts = {table.name: [own[each] for each in table.members if each in own] for table in known.values()}
    return {name: (sum(each[0] for each in found), sum(each[1] for each in found)) for name, found in parts.items()}


def _rows(session: Connection, table: Table, source: str, form: str) -> Iterator[bytes]:
    if table.name not in table.members:  # a partitioned table has no rows of its own, and COPY refuses it
        return
    try:
        yield from _copy(session, source, form)
    except psycopg.Error as error:
        raise DatabaseError("a table cannot be read", where=table.name, seen=str(error).strip()) from None


def values(
    session: Connection, name: sql.Identifier, columns: Sequence[str], most: int | None = None
) -> list[list[str | None]]:
    """Read columns as text, for values without tab, backslash and line break; `most` rows. Raises psycopg.Error."""
    listed = sql.SQL(", ").join(map(sql.Identifier, columns)).as_string(session)
    with closing(_copy(session, f"{name.as_string(session)} ({listed})", "text")) as rows:
        found = list(islice(rows, most))
    return [[None if each == b"\\N" else each.decode() for each in row.rstrip(b"\n").split(b"\t")] for row in found]


def _copy(session: Connection, source: str, form: str) -> Generator[bytes, None, None]:
    """Yield each row; the server sends one message per row, and the header with the first one."""
    with session.cursor() as cursor, cursor.copy(f"COPY {source} TO STDOUT (FORMAT {form})".encode()) as stream:
        for chunk in stream:
            row = bytes(chunk)
            if form == "binary":
                row = row[HEADER_LENGTH:] if row.startswith(HEADER) else row
                if row in (b"", TRAILER):
                    continue
            yield row
