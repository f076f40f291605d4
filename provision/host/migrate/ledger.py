"""The version table shared with golang-migrate, our history table, and the two advisory locks. Does IO.

The version table has at most one row. It is written with DELETE and INSERT rather than TRUNCATE, which golang-migrate
uses: TRUNCATE waits for pg_dump, and all other sessions then queue behind it. Checksums, times, roles and durations
are stored in a separate table, `<version table>_history`. It is append-only except for the outcome of the last step,
and has no foreign key to the version table, so golang-migrate can rewrite that table freely.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from provision import __version__
from provision.database import Connection, identifier, send_message
from provision.errors import DatabaseError, UsageError
from provision.host import plain
from provision.host.migrate.files import NONE, Direction
from provision.host.migrate.steps import Step

LOCK_SALT = 1486364155
"""golang-migrate's advisoryLockIDSalt (database/util.go)."""

WRITE_LOCK_TIMEOUT_S = 60
"""Lock timeout of a version write: longer than that of a file, because a failed write leaves the version dirty."""

HISTORY_SUFFIX = "_history"
LONGEST_TABLE = 63 - len(HISTORY_SUFFIX)
"""Longest name of the version table in bytes; PostgreSQL truncates names at 63 bytes."""


_HISTORY_COLUMNS = {
    **dict.fromkeys(("id", "version"), "bigint"),
    **dict.fromkeys(("name", "direction", "outcome", "checksum", "runner", "detail"), "text"),
    "started_at": "timestamp with time zone",
    "duration": "interval",
    "role": "name",
}
"""Other types could bring operators and casts of their owner."""


APPLIED = ("done", "adopted", "forced")
"""Outcomes of history entries that record whether a version is applied."""


def lock_keys(schema: str, table: str, database: str) -> tuple[int, int]:
    """Compute golang-migrate's lock keys: of its command line (database with a slash), then of its library."""
    return _lock_key(schema, table, f"/{database}"), _lock_key(schema, table, database)


def _lock_key(*names: str) -> int:
    return zlib.crc32("\0".join(names).encode()) * LOCK_SALT % 2**32


@dataclass(frozen=True)
class State:
    """Content of the version table; `version` is NONE (-1) if nothing is applied."""

    version: int
    dirty: bool

    def __str__(self) -> str:
        """Format it as golang-migrate does."""
        shown = "none" if self.version == NONE else str(self.version)
        return f"{shown} (dirty)" if self.dirty else shown


@dataclass(frozen=True)
class Record:
    """The latest history entry of one version. Times are ISO 8601 in UTC without fractions."""

    version: int
    name: str
    direction: str
    outcome: str
    checksum: str | None
    at: str
    by: str
    seconds: float | None
    detail: str | None

    @property
    def applied(self) -> bool:
        """Return whether the version is applied after this entry."""
        return self.direction == "up"


@dataclass(frozen=True)
class Entry:
    """A history entry to write for an adopted or forced version, for which nothing ran."""

    version: int
    name: str
    direction: Direction
    outcome: str
    checksum: str | None


def _shown(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in sorted(columns.items()))


class Ledger:
    """The version and history tables in one schema of one database."""

    def __init__(self, connection: Connection, schema: str | None = None, table: str = "schema_migrations") -> None:
        """Use current_schema(), as golang-migrate does, unless a schema is given."""
        row = connection.execute("SELECT current_schema(), current_database()").fetchone()
        here, database = row if row else (None, None)
        if here is None and schema is None:
            raise DatabaseError(
                "no schema to migrate",
                where=f"database {database}",
                seen="current_schema() is null: no schema of search_path exists",
                allowed="a search_path with an existing schema, or --schema",
                run="provision migrate status --schema public",
            )
        if len(table.encode()) > LONGEST_TABLE:
            raise UsageError("the version table's name is too long", seen=table, allowed=f"up to {LONGEST_TABLE} bytes")
        self.connection, self._schema_given = connection, schema is not None
        self.schema, self.table, self.database = schema or str(here), table, str(database)
        self.keys = lock_keys(self.schema, self.table, self.database)
        self._versions = sql.Identifier(self.schema, self.table)
        self.history_table = self.table + HISTORY_SUFFIX
        self._history = sql.Identifier(self.schema, self.history_table)
        self._versions_name = self._versions.as_bytes(connection)
        self._history_name = self._history.as_bytes(connection)
        self.query = sql.SQL("SELECT version, dirty FROM {} LIMIT 2").format(self._versions)
        self.by = f"provision {__version__}, {socket.gethostname()}, pid {os.getpid()}"

    @property
    def name(self) -> str:
        """The version table's qualified name, quoted for SQL."""
        return self._versions.as_string(self.connection)

    def check(self, *, write: bool) -> None:
        """Refuse tables of another tool, hidden version tables and missing privileges. Changes nothing."""
        columns = self._columns(self.table)
        if columns and columns != {"version": "bigint", "dirty": "boolean"}:
            raise DatabaseError(
                f"{self.name} belongs to another tool",
                where=f"database {self.database}",
                seen=f"columns {_shown(columns)}",
                allowed="version bigint, dirty boolean",
                run="provision migrate status --table OTHER_NAME",
            )
        history = self._columns(self.history_table)
        if history and not history.items() >= _HISTORY_COLUMNS.items():
            raise DatabaseError(
                f"{self.history_name} belongs to another tool",
                where=f"database {self.database}",
                seen=f"columns {_shown(history)}",
                allowed=f"columns {_shown(_HISTORY_COLUMNS)}",
                run="provision migrate status --table OTHER_NAME",
            )
        if write:
            self._check_privileges(versions=bool(columns), history=bool(history))
        if not columns:
            self._refuse_moved()

    def _refuse_moved(self) -> None:
        """Refuse a first run if another schema, outside search_path, has a version table: all files would run twice.

        Only a table of this session's role counts: those of tenants belong to other roles.
        """
        if self._schema_given:
            return
        row = self.connection.execute(
            "SELECT n.nspname, current_setting('search_path'), s.source FROM pg_class v"
            " JOIN pg_namespace n ON n.oid = v.relnamespace"
            " JOIN pg_class h ON h.relnamespace = v.relnamespace AND h.relname = %s"
            " JOIN pg_settings s ON s.name = 'search_path'"
            " WHERE v.relname = %s AND n.nspname <> %s AND s.source NOT IN ('client', 'session')"
            " AND pg_has_role(v.relowner, 'USAGE') ORDER BY 1 LIMIT 1",
            (self.history_table, self.table, self.schema),
        ).fetchone()
        if row is None:
            return
        there, path, source = row
        raise DatabaseError(
            f"migrations were applied in schema {there}, but this session would start again in {self.schema}",
            where=f"database {self.database}, role {self.connection.info.user}",
            seen=f"search_path is {path} (set by: {source}); {self.name} does not exist",
            allowed="the schema with the version table, or an explicit --schema",
            run=f"provision migrate status --schema {there}; to start again: --schema {self.schema}",
        )

    def has_history(self) -> bool:
        """Return whether the history table exists."""
        return bool(self._columns(self.history_table))

    @property
    def history_name(self) -> str:
        """The history table's qualified name, quoted for SQL."""
        return self._history.as_string(self.connection)

    def _check_privileges(self, *, versions: bool, history: bool) -> None:
        """Refuse a role that cannot write both tables, or cannot create a missing one."""
        schema = sql.Identifier(self.schema).as_string(self.connection)
        needed = f"CREATE ON SCHEMA {schema}"
        query = "SELECT has_schema_privilege(%s, 'CREATE')"
        try:
            complete = versions and history
            row = (True,) if complete else self.connection.execute(query, (self.schema,)).fetchone()
            existing = [(self.name, "INSERT,DELETE")] * versions + [(self.history_name, "INSERT,UPDATE")] * history
            for name, kinds in existing if row == (True,) else ():
                row = self.connection.execute(
                    "SELECT bool_and(has_table_privilege(%s, k)) FROM unnest(string_to_array('SELECT,' || %s, ',')) k",
                    (name, kinds),
                ).fetchone()
                if row != (True,):
                    needed = f"SELECT, {kinds.replace(',', ', ')} ON {name}"
                    break
        except psycopg.errors.InvalidSchemaName:
            raise DatabaseError(
                f"schema {identifier(self.schema)} does not exist",
                where=f"database {self.database}",
                allowed="an existing schema",
                run=f"CREATE SCHEMA {identifier(self.schema)}",
            ) from None
        if row is None or not row[0]:
            raise DatabaseError(
                "this role lacks a privilege for migrations",
                where=f"database {self.database}, role {self.connection.info.user}",
                seen=f"missing: {needed}",
                allowed="the owner of the database, or a role with that privilege",
                run=f"GRANT {needed} TO {sql.Identifier(self.connection.info.user).as_string(self.connection)}",
            )

    def _columns(self, table: str) -> dict[str, str]:
        rows = self.connection.execute(
            "SELECT a.attname, format_type(a.atttypid, NULL) FROM pg_attribute a"
            " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped",
            (self.schema, table),
        ).fetchall()
        return {str(name): str(kind) for name, kind in rows}

    def peek(self) -> tuple[State, bool]:
        """Return the version, and whether the history has applied steps, without running code of the tables' owner."""
        rows: list[tuple[object, ...]] = []
        if self._columns(self.table):
            rows = [(text, dirty == "t") for text, dirty in self._plain(self._versions, ("version", "dirty"))]
        outcomes = self._plain(self._history, ("outcome",)) if self.has_history() else []
        return self.read(rows), any(row[0] in APPLIED for row in outcomes)

    def _plain(self, name: sql.Identifier, columns: tuple[str, ...]) -> list[list[str | None]]:
        try:
            return plain.values(self.connection, name, columns)
        except psycopg.errors.WrongObjectType:
            raise DatabaseError(
                f"{name.as_string(self.connection)} is not an ordinary table",
                where=f"database {self.database}",
                allowed="an ordinary table, or none",
                run=f"remove it from schema {self.schema}, then run the same command again",
            ) from None

    def replace(self) -> None:
        """Replace empty tables by new ones of this session's role, in one transaction with what follows.

        A trigger, rule or constraint of the old ones would run its owner's functions with this session's rights.
        """
        for name, table in ((self._versions, self.table), (self._history, self.history_table)):
            if not self._columns(table):
                continue
            self.connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name))
            if self._plain(name, ("version",)):
                raise DatabaseError(
                    f"{name.as_string(self.connection)} has rows but records no applied version",
                    where=f"database {self.database}",
                    allowed="a recorded version, or an empty table",
                    run="read them, then delete them",
                )
            self.connection.execute(sql.SQL("DROP TABLE {}").format(name))
        self.create()

    def create(self) -> None:
        """Create the tables that do not exist."""
        statement = sql.SQL("CREATE TABLE {} (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)")
        if not self._columns(self.table):
            self.connection.execute(statement.format(self._versions))
            self._keep_to_owner(self.table, self._versions)
        if not self._columns(self.history_table):
            self.connection.execute(
                sql.SQL(
                    "CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                    " version bigint NOT NULL, name text NOT NULL,"
                    " direction text NOT NULL CHECK (direction IN ('up', 'down')),"
                    " outcome text NOT NULL CHECK (outcome IN"
                    " ('started', 'done', 'failed', 'interrupted', 'adopted', 'forced')),"
                    " checksum text CHECK (checksum ~ '^[0-9a-f]{{64}}$'),"
                    " started_at timestamptz NOT NULL DEFAULT clock_timestamp(), duration interval,"
                    " role name NOT NULL DEFAULT session_user, runner text NOT NULL, detail text)"
                ).format(self._history)
            )
            self._keep_to_owner(self.history_table, self._history)

    def _keep_to_owner(self, table: str, name: sql.Identifier) -> None:
        """Revoke write privileges that default privileges gave other roles on a new table."""
        rows = self.connection.execute(
            "SELECT DISTINCT pg_get_userbyid(x.grantee), x.grantee FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) x"
            " WHERE n.nspname = %s AND c.relname = %s AND x.grantee <> c.relowner AND x.privilege_type <> 'SELECT'",
            (self.schema, table),
        ).fetchall()
        for role, oid in rows:
            grantee = sql.Identifier(str(role)) if oid else sql.SQL("PUBLIC")
            kinds = "INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER"
            self.connection.execute(sql.SQL("REVOKE " + kinds + " ON {} FROM {}").format(name, grantee))

    def state(self) -> State:
        """Read the version; a missing or empty table means that nothing is applied."""
        try:
            return self.read(self.connection.execute(self.query).fetchall())
        except psycopg.errors.UndefinedTable:
            return State(NONE, dirty=False)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"cannot read {self.name}", seen=str(error).strip(), allowed="a role with SELECT on it"
            ) from None

    def read(self, rows: list[tuple[object, ...]]) -> State:
        """Convert the result of `query` to a State. Raises DatabaseError for more than one row."""
        if len(rows) > 1:
            raise DatabaseError(
                f"{self.name} has more than one row",
                where=f"database {self.database}",
                allowed="at most one row, the current version",
                run="provision migrate force VERSION",
            )
        return State(int(str(rows[0][0])), bool(rows[0][1])) if rows else State(NONE, dirty=False)

    def records(self) -> dict[int, Record]:
        """Read, per version, the latest history entry that records whether it is applied."""
        return self._read(
            "SELECT DISTINCT ON (version) {} FROM {} WHERE outcome IN ('done', 'adopted', 'forced')"
            " ORDER BY version, id DESC"
        )

    def unfinished(self, state: State) -> Record | None:
        """Read the latest history entry if it is an unsuccessful step that explains `state`."""
        for record in self._read("SELECT {} FROM {} ORDER BY id DESC LIMIT 1").values():
            ours = record.version == state.version if record.direction == "up" else record.version > state.version
            if ours and record.outcome in ("started", "failed", "interrupted"):
                return record
        return None

    def _read(self, query: str) -> dict[int, Record]:
        columns = sql.SQL(
            "version, name, direction, outcome, checksum,"
            " to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),"
            " role || ' (' || runner || ')', extract(epoch FROM duration)::float8, detail"
        )
        try:
            statement = sql.SQL(query).format(columns, self._history)
            rows = self.connection.execute(statement).fetchall()
        except psycopg.errors.UndefinedTable:
            return {}
        return {row[0]: Record(*row) for row in rows}  # type: ignore[misc,arg-type]

    def beginning(self, step: Step, checksum: str | None) -> bytes:
        """Return the statements that mark the target dirty and record the start of the step.

        They use an asynchronous commit: WAL order guarantees that they reach the disk before the file's own commit.
        """
        entry = Entry(step.version, step.title, step.direction, "started", checksum)
        return self._statements(State(step.target, dirty=True), self._line(entry), wait=False)

    def ending(self, state: State, outcome: str, detail: str | None = None, *, wait: bool = True) -> bytes:
        """Return the statements that set the version after a step and record its outcome."""
        # Citus refuses a volatile function in an UPDATE, so the clock is read before it.
        update = (
            b"SELECT pg_catalog.set_config('provision.ended', pg_catalog.clock_timestamp()::text, true);"
            b" UPDATE %b SET outcome = %b, detail = %b,"
            b" duration = pg_catalog.current_setting('provision.ended')::timestamptz - started_at"
            b" WHERE outcome = 'started' AND id = (SELECT max(id) FROM %b)"
        )
        values = (self._text(outcome), self._text(detail))
        return self._statements(state, update % (self._history_name, *values, self._history_name), wait=wait)

    def begin(self, step: Step, checksum: str | None) -> None:
        """Commit the start of a step, in one message and so one transaction."""
        send_message(self.connection, self.beginning(step, checksum))

    def end(self, state: State, outcome: str, detail: str | None = None) -> None:
        """Commit the end of a step."""
        send_message(self.connection, self.ending(state, outcome, detail))

    def force(self, state: State, entries: list[Entry]) -> None:
        """Commit a version and the history entries of steps that this runner did not run."""
        send_message(self.connection, self._statements(state, *map(self._line, entries), wait=True))

    def _line(self, entry: Entry) -> bytes:
        insert = b"INSERT INTO %b (version, name, direction, outcome, checksum, runner) VALUES (%d, %b, %b, %b, %b, %b)"
        texts = map(self._text, (entry.name, entry.direction, entry.outcome, entry.checksum, self.by))
        return insert % (self._history_name, entry.version, *texts)

    def _statements(self, state: State, *history: bytes, wait: bool) -> bytes:
        parts = [b"SET LOCAL lock_timeout = '%ds'; SET LOCAL statement_timeout = 0" % WRITE_LOCK_TIMEOUT_S]
        parts += [] if wait else [b"SET LOCAL synchronous_commit = off"]
        parts.append(b"DELETE FROM %b" % self._versions_name)
        if state.version != NONE or state.dirty:
            dirty = b"true" if state.dirty else b"false"
            parts.append(
                b"INSERT INTO %b (version, dirty) VALUES (%d, %b)" % (self._versions_name, state.version, dirty)
            )
        return b"; ".join([*parts, *history])

    def _text(self, value: str | None) -> bytes:
        """Quote a value as bytes: composing with psycopg.sql takes longer than the server needs for the statement."""
        if value is not None:  # a file name may contain bytes that are not valid in the database encoding
            utf8 = self.connection.info.parameter_status("server_encoding") == "UTF8"
            value = value.encode("utf-8" if utf8 else "ascii", "backslashreplace").decode()
        return sql.Literal(value).as_bytes(self.connection)
