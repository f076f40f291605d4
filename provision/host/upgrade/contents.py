"""What logical replication does not bring to the other server: the schema, sequences, indexes built late. Does IO.

Also compares both servers: tables and columns by name, and row counts.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from provision import pins, secure_path
from provision.database import Connection, ask
from provision.errors import HostError
from provision.host import rehearsal
from provision.host.upgrade.closed import Server
from provision.host.upgrade.replication import TABLES
from provision.host.upgrade.sessions import databases, session_of
from provision.host.upgrade.transfer import TIMEOUT_S, program
from provision.plan.schema import Plan
from provision.system import POSTGRES, as_user, run

DUMP = "schema.sql"
OWN = re.compile(r"^(CREATE ROLE postgres;|DROP ROLE IF EXISTS postgres;)$", re.M)
"""initdb has made this role, which is also the one that restores."""
NOISE = re.compile(r"^(--.*|\\(un)?restrict .*|\s*)$")
"""Comments with versions, and the random key of each dump."""
SECRET = re.compile(r" PASSWORD '[^']*'")
SHOWN = 6
BATCH = 500
COUNT_S = 2.0
"""Time for counting rows while clients wait, smallest tables first; larger ones rely on the confirmed position."""
SEQUENCES = (
    "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S' AND oid >= 16384 AND relpersistence <> 't' ORDER BY 1"
)
# Of tables with data alone: an index of a partitioned table makes those of its partitions.
INDEXES = """
SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
WHERE c.relkind = 'i' AND NOT c.relispartition AND NOT i.indisunique AND i.indisvalid AND t.relkind = 'r'
  AND t.oid >= 16384 AND NOT i.indisclustered AND NOT i.indisreplident
  AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY t.relpages, 1
"""
VIEWS = "SELECT oid::regclass::text, relispopulated FROM pg_class WHERE relkind = 'm' AND oid >= 16384 ORDER BY oid"
# Without what belongs to extensions, whose views differ between majors.
SHAPE = """
WITH own AS (SELECT oid, relkind FROM pg_class c WHERE oid >= 16384 AND relpersistence <> 't'
  AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
SELECT format('%s.%s %s%s', o.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
  CASE WHEN a.attnotnull THEN ' not null' END)
FROM own o JOIN pg_attribute a ON a.attrelid = o.oid
WHERE o.relkind IN ('r', 'p', 'v', 'm') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT format('constraint %s of %s', c.conname, o.oid::regclass) FROM own o
JOIN pg_constraint c ON c.conrelid = o.oid WHERE c.contype <> 'n'
UNION ALL SELECT format('sequence %s', oid::regclass) FROM own WHERE relkind = 'S'
UNION ALL SELECT format('schema %I', nspname) FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_'
"""


def dump(server: Server, programs: Path) -> str:
    """Return roles and the schemas of all databases as SQL, by the programs of the new major. Raises HostError."""
    plan = server.here
    words = ["--schema-only", "--clean", "--if-exists", "--no-publications", "--no-subscriptions", "--encoding=UTF8"]
    words += [f"--host={plan.server.socket_directory}", f"--port={plan.server.port}", "--username=postgres"]
    done = run(
        programs / "pg_dumpall", *words, user=POSTGRES, directory=Path("/"), timeout=TIMEOUT_S,
        environment={"LC_ALL": "C.UTF-8", **pins.environment()},
    )  # fmt: skip
    return OWN.sub("", done.stdout)


def rehearse(old: Server, new: Server) -> None:
    """Create roles and schemas of the old server on a scratch server with the new configuration. Raises HostError.

    pg_upgrade and `load` do the same later; what fails then is found here, while the old server serves.
    """
    text = dump(old, new.side.programs)
    rehearsal.rehearse(
        new.side.programs, new.side.configuration, lambda scratch: _create(new, scratch, new.plan.server.port, text)
    )


def load(server: Server, text: str) -> None:
    """Create roles, databases and schemas in a new cluster, and keep the text to compare it later. Raises HostError."""
    plan = server.here
    _create(server, server.folder, plan.server.port, text)
    for name in databases(plan):
        with session_of(plan, name) as session:
            _empty(session)
            for index, _definition in ask(session, INDEXES):
                session.execute(sql.SQL("DROP INDEX {}").format(sql.SQL(str(index))))


def _create(server: Server, folder: Path, port: int, text: str) -> None:
    """Run a dump on the server whose socket is in a folder of postgres, and leave its text there. Raises HostError."""
    path = folder / DUMP
    with as_user():
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
    words = ("-X", "-q", "-v", "ON_ERROR_STOP=1", f"--host={folder}", f"--port={port}", "--username=postgres")
    try:
        program(server.side, "psql", *words, "--dbname=postgres", f"--file={path}", client_min_messages="error")
    except HostError as error:
        version = run(server.side.programs / "postgres", "--version").stdout.split()[2]
        raise HostError(
            f"PostgreSQL {version} cannot create the roles and schemas of this host; the old server serves",
            where=str(server.side.programs), seen=SECRET.sub(" PASSWORD ...", error.seen),
            allowed="objects that the new major has too; a minor release of it that is not older than the old one's",
            run="provision upgrade check, once it is resolved",
        ) from None  # fmt: skip


def _empty(session: Connection) -> None:
    """Empty the tables that an extension has filled: their rows come with the others."""
    for row in ask(session, TABLES):
        if ask(session, "SELECT pg_relation_size(%s::oid) > 0", [row[0]]) == [(True,)]:
            session.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(str(row[1]))))


def changed(server: Server, new: Server) -> list[str]:
    """Return the first lines in which roles and schemas differ from those that were loaded, without passwords."""
    with as_user():
        before = secure_path.text(new.folder / DUMP)
    now = dump(server, new.side.programs)
    lines = difflib.unified_diff(_lines(before), _lines(now), lineterm="", n=0)
    found = [SECRET.sub(" PASSWORD ...", line) for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return found[:SHOWN] + ([f"{len(found) - SHOWN} more lines"] if len(found) > SHOWN else [])


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not NOISE.match(line)]


def differences(one: Plan, other: Plan) -> list[str]:
    """Return tables, columns, constraints, sequences and schemas that only one of two servers has."""
    found = []
    for name in databases(one):
        with session_of(one, name) as session:
            here = {str(row[0]) for row in ask(session, SHAPE)}
        with session_of(other, name) as session:
            there = {str(row[0]) for row in ask(session, SHAPE)}
        for major, lines in ((one.server.major, here - there), (other.server.major, there - here)):
            found += [f"database {name}: only PostgreSQL {major} has {each}" for each in sorted(lines)[:SHOWN]]
    return found


def build(old: Plan, new: Plan) -> Iterator[str]:
    """Build the indexes that `load` left out and fill materialized views; yield the name of each before it begins."""
    for name in databases(old):
        with session_of(old, name) as session:
            wanted = [(str(index), str(definition)) for index, definition in ask(session, INDEXES)]
            views = [str(view) for view, full in ask(session, VIEWS) if full]
        with session_of(new, name) as session:
            for index, definition in wanted:
                if ask(session, "SELECT to_regclass(%s) IS NULL", [index]) == [(True,)]:
                    yield index
                    session.execute(definition.encode())
            for view in views:
                yield view
                session.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(sql.SQL(view)))


def copy_sequences(source: Plan, target: Plan) -> int:
    """Set every sequence of the target to the value of the source, and return their number. Raises DatabaseError."""
    number = 0
    for name in databases(source):
        with session_of(source, name) as session, session_of(target, name) as other:
            names = [str(row[0]) for row in ask(session, SEQUENCES)]
            for first in range(0, len(names), BATCH):
                rows = session.execute(_values(names[first : first + BATCH])).fetchall()
                values = sql.SQL(", ").join(
                    sql.SQL("(to_regclass({}), {}::bigint, {}::boolean)").format(*map(sql.Literal, row)) for row in rows
                )
                other.execute(sql.SQL("SELECT setval(n, v, c) FROM (VALUES {}) AS s (n, v, c)").format(values))
                number += len(rows)
    return number


def _values(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {}, last_value, is_called FROM {}").format(sql.Literal(name), sql.SQL(name)) for name in names
    )


def count(one: Plan, other: Plan, seconds: float = COUNT_S) -> tuple[list[str], int]:
    """Compare the number of rows of as many tables as there is time for: return differences, and the tables left out.

    Nothing may write to either server.
    """
    deadline, found, left = time.monotonic() + seconds, [], 0
    for name in databases(one):
        with session_of(one, name) as session, session_of(other, name) as there:
            tables = sorted(ask(session, TABLES), key=lambda row: int(str(row[5])))
            for place, row in enumerate(tables):
                table = str(row[1])
                try:
                    pair = [_rows(each, table, deadline - time.monotonic()) for each in (session, there)]
                except (TimeoutError, psycopg.errors.QueryCanceled):
                    left += len(tables) - place
                    break
                if pair[0] != pair[1]:
                    found.append(f"database {name}: {table} has {pair[0]} rows, {pair[1]} on the other server")
    return found, left


def _rows(session: Connection, table: str, seconds: float) -> int:
    if seconds <= 0:
        raise TimeoutError
    session.execute(sql.SQL("SET statement_timeout = {}").format(sql.Literal(f"{max(1, round(seconds * 1000))}ms")))
    row = session.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.SQL(table))).fetchone()
    return int(str(row[0])) if row else 0
