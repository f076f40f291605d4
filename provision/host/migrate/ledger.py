"""The version table that golang-migrate shares with us, our history table beside it, and the two locks. Does IO.

The version table holds at most one row. It is written by DELETE and INSERT, not TRUNCATE as golang-migrate does:
TRUNCATE waits behind pg_dump and everybody then waits behind it. What we know beyond golang-migrate (checksums,
when, who, how long) lives in a table of our own, `<version table>_history`, append-only but for the outcome of the
last step, and without a reference between the two, so that golang-migrate may do what it likes to its own.
"""

from __future__ import annotations

import os
import socket
import zlib
from dataclasses import dataclass

import psycopg
from psycopg import sql

from provision import __version__
from provision.database import Connection, send_message
from provision.errors import DatabaseError, UsageError
from provision.host.migrate.files import NONE, Direction
from provision.host.migrate.steps import Step

LOCK_SALT = 1486364155
"""golang-migrate's advisoryLockIDSalt (database/util.go)."""

WRITE_LOCK_TIMEOUT_S = 60
"""How long the write of a version waits for a lock: longer than a file does, for to give up here leaves dirty."""

HISTORY_SUFFIX = "_history"
LONGEST_TABLE = 63 - len(HISTORY_SUFFIX)
"""Characters of a version table's name; PostgreSQL cuts names at 63 bytes."""


_HISTORY_COLUMNS = {
    *("id", "version", "name", "direction", "outcome", "checksum"),
    *("started_at", "duration", "role", "runner", "detail"),
}


def lock_keys(schema: str, table: str, database: str) -> tuple[int, int]:
    """Compute golang-migrate's lock: of its command line (database with a slash), then of its library."""
    return _lock_key(schema, table, f"/{database}"), _lock_key(schema, table, database)


def _lock_key(*names: str) -> int:
    return zlib.crc32("\0".join(names).encode()) * LOCK_SALT % 2**32


@dataclass(frozen=True)
class State:
    """What the version table says; `version` is NONE (-1) when nothing is applied."""

    version: int
    dirty: bool

    def __str__(self) -> str:
        """Print it as golang-migrate does."""
        shown = "none" if self.version == NONE else str(self.version)
        return f"{shown} (dirty)" if self.dirty else shown


@dataclass(frozen=True)
class Record:
    """The last line of history about one version; times in UTC as ISO 8601 without fractions."""

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
        """Say whether this line leaves the version applied."""
        return self.direction == "up"


@dataclass(frozen=True)
class Entry:
    """A line of history to be written: an adopted or forced version, for which nothing was run."""

    version: int
    name: str
    direction: Direction
    outcome: str
    checksum: str | None


class Ledger:
    """Both tables, in one schema of one database."""

    def __init__(self, connection: Connection, schema: str | None = None, table: str = "schema_migrations") -> None:
        """Take the schema of the session (current_schema()) unless one is named, as golang-migrate does."""
        row = connection.execute("SELECT current_schema(), current_database()").fetchone()
        here, database = row if row else (None, None)
        if here is None and schema is None:
            raise DatabaseError(
                "no schema to migrate in",
                where=f"database {database}",
                seen="current_schema() is null: no schema of search_path exists",
                allowed="a search_path with an existing schema, or --schema",
                run="provision migrate status --schema public",
            )
        if len(table.encode()) > LONGEST_TABLE:
            raise UsageError("the name of the version table is too long", seen=table, allowed=f"{LONGEST_TABLE} bytes")
        self.connection, self._told = connection, schema is not None
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
        """Name the version table with its schema, quoted as SQL needs it."""
        return self._versions.as_string(self.connection)

    def check(self, *, write: bool) -> None:
        """Refuse another tool's table, one with several rows, and missing privileges. Changes nothing."""
        columns = self._columns(self.table)
        if columns and columns != {"version": "bigint", "dirty": "boolean"}:
            shown = ", ".join(f"{name} {kind}" for name, kind in sorted(columns.items()))
            raise DatabaseError(
                f"{self.name} belongs to another tool",
                where=f"database {self.database}",
                seen=f"columns {shown}",
                allowed="version bigint, dirty boolean",
                run="provision migrate status --table OTHER_NAME",
            )
        history = self._columns(self.history_table)
        if history and not history.keys() >= _HISTORY_COLUMNS:
            raise DatabaseError(
                f"{self.history_name} belongs to another tool",
                where=f"database {self.database}",
                seen=f"columns {', '.join(sorted(history))}",
                allowed=f"columns {', '.join(sorted(_HISTORY_COLUMNS))}",
                run="provision migrate status --table OTHER_NAME",
            )
        if write:
            self._check_privileges(versions=bool(columns), history=bool(history))
        if not columns:
            self._refuse_moved()

    def _refuse_moved(self) -> None:
        """Refuse to begin anew beside a version table that is only out of sight: all would run a second time."""
        if self._told:
            return
        row = self.connection.execute(
            "SELECT n.nspname, current_setting('search_path'), s.source FROM pg_class v"
            " JOIN pg_namespace n ON n.oid = v.relnamespace"
            " JOIN pg_class h ON h.relnamespace = v.relnamespace AND h.relname = %s"
            " JOIN pg_settings s ON s.name = 'search_path'"
            " WHERE v.relname = %s AND n.nspname <> %s AND s.source NOT IN ('client', 'session') ORDER BY 1 LIMIT 1",
            (self.history_table, self.table, self.schema),
        ).fetchone()
        if row is None:
            return
        there, path, source = row
        raise DatabaseError(
            f"migrations were applied in schema {there}, and this session would begin anew in {self.schema}",
            where=f"database {self.database}, role {self.connection.info.user}",
            seen=f"search_path is {path} (set by: {source}); {self.name} is not there",
            allowed="the schema with the version table, or one that is named",
            run=f"provision migrate status --schema {there}; to begin anew: --schema {self.schema}",
        )

    def has_history(self) -> bool:
        """Say whether the history table is there."""
        return bool(self._columns(self.history_table))

    @property
    def history_name(self) -> str:
        """Name the history table with its schema, quoted as SQL needs it."""
        return self._history.as_string(self.connection)

    def _check_privileges(self, *, versions: bool, history: bool) -> None:
        """Refuse a role that could not write what a run writes: both tables, or CREATE where one is missing."""
        schema = sql.Identifier(self.schema).as_string(self.connection)
        wanted = f"CREATE ON SCHEMA {schema}"
        query = "SELECT has_schema_privilege(%s, 'CREATE')"
        try:
            complete = versions and history
            row = (True,) if complete else self.connection.execute(query, (self.schema,)).fetchone()
            there = [(self.name, "INSERT,DELETE")] * versions + [(self.history_name, "INSERT,UPDATE")] * history
            for name, kinds in there if row == (True,) else ():
                row = self.connection.execute(
                    "SELECT bool_and(has_table_privilege(%s, k)) FROM unnest(string_to_array('SELECT,' || %s, ',')) k",
                    (name, kinds),
                ).fetchone()
                if row != (True,):
                    wanted = f"SELECT, {kinds.replace(',', ', ')} ON {name}"
                    break
        except psycopg.errors.InvalidSchemaName:
            raise DatabaseError(
                f'schema "{self.schema}" does not exist',
                where=f"database {self.database}",
                allowed="an existing schema",
                run=f'CREATE SCHEMA "{self.schema}"',
            ) from None
        if row is None or not row[0]:
            raise DatabaseError(
                "this role may not migrate here",
                where=f"database {self.database}, role {self.connection.info.user}",
                seen=f"no privilege {wanted}",
                allowed="the owner of the database, or a role with that privilege",
                run=f"GRANT {wanted} TO {sql.Identifier(self.connection.info.user).as_string(self.connection)}",
            )

    def _columns(self, table: str) -> dict[str, str]:
        rows = self.connection.execute(
            "SELECT a.attname, format_type(a.atttypid, NULL) FROM pg_attribute a"
            " JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped",
            (self.schema, table),
        ).fetchall()
        return {str(name): str(kind) for name, kind in rows}

    def create(self) -> None:
        """Make whichever of the two tables is missing."""
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
        """Let nobody else write a table that was just made: default privileges may have let the application."""
        rows = self.connection.execute(
            "SELECT DISTINCT pg_get_userbyid(x.grantee), x.grantee FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) x"
            " WHERE n.nspname = %s AND c.relname = %s AND x.grantee <> c.relowner AND x.privilege_type <> 'SELECT'",
            (self.schema, table),
        ).fetchall()
        for role, oid in rows:
            whom = sql.Identifier(str(role)) if oid else sql.SQL("PUBLIC")
            kinds = "INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER"
            self.connection.execute(sql.SQL("REVOKE " + kinds + " ON {} FROM {}").format(name, whom))

    def state(self) -> State:
        """Read the version; a missing or empty table means that nothing was applied."""
        try:
            return self.read(self.connection.execute(self.query).fetchall())
        except psycopg.errors.UndefinedTable:
            return State(NONE, dirty=False)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(f"cannot read {self.name}", seen=str(error).strip(), allowed="SELECT on it") from None

    def read(self, rows: list[tuple[object, ...]]) -> State:
        """Turn what `query` gave into a State. Raises DatabaseError for more than one row."""
        if len(rows) > 1:
            raise DatabaseError(
                f"{self.name} holds more than one row",
                where=f"database {self.database}",
                allowed="one row, or none: the one current version",
                run="provision migrate force VERSION",
            )
        return State(int(str(rows[0][0])), bool(rows[0][1])) if rows else State(NONE, dirty=False)

    def records(self) -> dict[int, Record]:
        """Read the last line of history that says whether a version is applied, for each version."""
        return self._read(
            "SELECT DISTINCT ON (version) {} FROM {} WHERE outcome IN ('done', 'adopted', 'forced')"
            " ORDER BY version, id DESC"
        )

    def unfinished(self, state: State) -> Record | None:
        """Read the very last line of history, if it is a step that did not end well and could have led to `state`."""
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
        """Give the statements that say: the target is dirty, and the step started.

        They are committed without waiting for the disk: whatever the file commits later reaches the disk later.
        """
        entry = Entry(step.version, step.title, step.direction, "started", checksum)
        return self._statements(State(step.target, dirty=True), self._line(entry), wait=False)

    def ending(self, state: State, outcome: str, detail: str | None = None, *, wait: bool = True) -> bytes:
        """Give the statements that say what the version is after a step, and how the step ended."""
        update = (
            b"UPDATE %b SET outcome = %b, detail = %b, duration = clock_timestamp() - started_at"
            b" WHERE outcome = 'started' AND id = (SELECT max(id) FROM %b)"
        )
        values = (self._text(outcome), self._text(detail))
        return self._statements(state, update % (self._history_name, *values, self._history_name), wait=wait)

    def begin(self, step: Step, checksum: str | None) -> None:
        """Commit that a step begins: one message, which is one transaction."""
        send_message(self.connection, self.beginning(step, checksum))

    def end(self, state: State, outcome: str, detail: str | None = None) -> None:
        """Commit that a step ended."""
        send_message(self.connection, self.ending(state, outcome, detail))

    def force(self, state: State, entries: list[Entry]) -> None:
        """Commit a version and lines of history for what was not run by us."""
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
        """Quote a value. Composed as bytes, not with psycopg.sql, which takes longer than the server for it all."""
        if value is not None:  # a name of a file may hold what UTF-8, or the encoding of this database, cannot
            utf8 = self.connection.info.parameter_status("server_encoding") == "UTF8"
            value = value.encode("utf-8" if utf8 else "ascii", "backslashreplace").decode()
        return sql.Literal(value).as_bytes(self.connection)
