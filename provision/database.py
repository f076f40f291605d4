"""The only module that opens psycopg connections: time limits, application names, and polled advisory locks.

Does IO. Stores no password: it comes from the URL, the environment or a password file and is never printed.
Works with the psycopg of Debian 12 (3.1) and newer.
"""

from __future__ import annotations

import re
import select
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import ExecStatus

from provision import pins, urls
from provision.errors import DatabaseError
from provision.quoting import double

Connection = psycopg.Connection[tuple[object, ...]]

CONNECT_TIMEOUT_S = 10
UNSUPPORTED = "unsupported startup parameter"
"""PgBouncer's refusal of settings at connect. Each is then set by a statement, which is all that is left."""
POLL_S = (0.05, 0.5)
"""First and longest pause between attempts to take an advisory lock."""


def connect(
    url: str = "",
    *,
    application: str,
    autocommit: bool = True,
    statement_timeout_ms: int | None = None,
    lock_timeout_ms: int | None = None,
) -> Connection:
    """Open a session to a libpq URL or key=value string; an empty string means the `PG*` environment.

    Time-outs are set after connecting, so that they work through any proxy. Raises UsageError for an unusable URL,
    DatabaseError with host, port and database; neither repeats the password.
    """
    return _limited(_open(url, _parameters(url, application), autocommit), statement_timeout_ms, lock_timeout_ms)


def connect_pinned(
    url: str,
    *,
    application: str,
    autocommit: bool = True,
    statement_timeout_ms: int | None = None,
    lock_timeout_ms: int | None = None,
) -> Connection:
    """Open a session like `connect` that no setting stored in the database or for a role can change (see `pins`).

    For every role with more privileges than the roles that create objects in the database: otherwise another role's
    operator || or function format would run with its privileges (CVE-2018-1058).
    """
    parameters = _parameters(url, application)
    given = str(parameters.get("options") or "")
    parameters["options"] = f"{given} {pins.options()}".strip()
    try:
        connection = _open(url, parameters, autocommit=True)
    except DatabaseError as error:
        if UNSUPPORTED not in error.seen:
            raise
        connection = _open(url, parameters | {"options": given}, autocommit=True)
        _set(connection, pins.EVERYWHERE)
    later = pins.later(connection.info.server_version, connection.info.parameter_status("is_superuser") == "on")
    try:
        _set(connection, later)
    except psycopg.OperationalError:  # a transaction_timeout that even a SET exceeds
        connection.close()
        parameters["options"] = f"{parameters['options']} {pins.options(later)}"
        connection = _open(url, parameters, autocommit=True)
    connection.autocommit = autocommit
    return _limited(connection, statement_timeout_ms, lock_timeout_ms)


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    for name, value in settings.items():  # SET, not set_config(): the function could be another role's
        values = sql.SQL(", ").join(map(sql.Literal, value.split(", ") if name == "search_path" else [value]))
        connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), values))


def _parameters(url: str, application: str) -> dict[str, str | int | None]:
    parameters: dict[str, str | int | None] = {**urls.parsed(urls.read(url).url)}
    parameters.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
    parameters.setdefault("application_name", application)
    parameters["client_encoding"] = "UTF8"  # otherwise a SQL_ASCII database returns bytes
    return parameters


def _open(url: str, parameters: dict[str, str | int | None], autocommit: bool) -> Connection:
    try:
        connection = psycopg.connect(make_conninfo("", **parameters), autocommit=autocommit)
        connection.prepare_threshold = None  # prepared statements do not survive a pooler or DISCARD ALL
    except psycopg.Error as error:
        said = urls.redacted(str(error).strip(), url)
        allowed, next_command = _remedy(said, parameters)
        raise DatabaseError(
            "cannot connect to PostgreSQL", where=urls.describe(url), seen=said, allowed=allowed, run=next_command
        ) from None
    return connection


def _remedy(said: str, parameters: Mapping[str, str | int | None]) -> tuple[str, str]:
    """Return what is allowed, and the next command, for a message of libpq."""
    if unknown := re.search(r'unrecognized configuration parameter "([^"]*)"', said):
        return "parameters of libpq and settings of the server", f"remove {unknown[1]} from the URL"
    if "password" in said:
        return "the role's password, in the URL, PGPASSWORD or the password file (~/.pgpass)", ""
    words = [word for flag, name in (("-h", "host"), ("-p", "port"))
             if parameters.get(name) for word in (flag, str(parameters[name]))]  # fmt: skip
    return "a server that accepts connections there", shlex.join(["pg_isready", *words])


def _limited(connection: Connection, statement_timeout_ms: int | None, lock_timeout_ms: int | None) -> Connection:
    for name, value in (("statement_timeout", statement_timeout_ms), ("lock_timeout", lock_timeout_ms)):
        if value is not None:
            connection.execute("SELECT set_config(%s, %s, false)", (name, f"{value}ms"))
    return connection


def guarded(connection: Connection) -> bool:
    """Return whether destructive commands on this database need confirmation (its setting provision.guard).

    Reads the catalogue, because a connection URL can override the session's value. A database that has only
    provision.profile, the setting of earlier versions, counts as guarded.
    """
    row = connection.execute(
        "SELECT coalesce(max(split_part(entry, '=', 2)) FILTER (WHERE entry LIKE 'provision.guard=%') <> 'off',"
        " count(*) > 0) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase,"
        " unnest(s.setconfig) entry WHERE d.datname = current_database() AND s.setrole = 0"
        " AND (entry LIKE 'provision.guard=%' OR entry LIKE 'provision.profile=%')"
    ).fetchone()
    return row != (False,)


def through_pooler(connection: Connection) -> bool:
    """Return whether a connection pooler is between this session and its server process.

    A server sends its client a process id for cancel requests. A pooler sends an id of its own, because a client's
    server session changes. So libpq's id differs from pg_backend_pid() behind PgBouncer (any pool mode), Odyssey,
    pgcat or RDS Proxy, and never behind a TCP proxy.
    """
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.pgconn.backend_pid


def refuse_pooler(connection: Connection) -> None:
    """Raise DatabaseError behind a pooler."""
    if not through_pooler(connection):
        return
    raise DatabaseError(
        "connected through a connection pooler",
        where=_address(connection),
        seen="pg_backend_pid() differs from the process id of the connection",
        allowed="a direct connection: behind a pooler, locks and settings leak to other clients",
        run="use PostgreSQL's own port (5432, not 6432)",
    )


def require_pooler(connection: Connection) -> None:
    """Raise DatabaseError on a direct connection."""
    if not through_pooler(connection):
        raise DatabaseError(
            "not connected through a connection pooler",
            where=_address(connection),
            seen="pg_backend_pid() is the process id of the connection",
            allowed="the pooler's port (6432)",
        )


def is_standby(url: str) -> bool:
    """Return whether a server is in recovery: a replica of a cluster, which only the primary changes.

    Raises DatabaseError if it cannot be asked.
    """
    with connect(url, application="provision") as connection:
        return ask(connection, "SELECT pg_is_in_recovery()") == [(True,)]


def refuse_read_only(connection: Connection) -> None:
    """Raise DatabaseError on a standby, and if transactions are read-only by default."""
    row = connection.execute("SELECT pg_is_in_recovery(), current_setting('transaction_read_only')").fetchone()
    if row is None or row[0] or row[1] == "on":
        standby = row is None or row[0]
        raise DatabaseError(
            "connected to a standby" if standby else "transactions are read-only",
            where=_address(connection),
            seen="pg_is_in_recovery() is true" if standby else "default_transaction_read_only is on",
            allowed="a writable primary",
            run="use the primary's address, or list all hosts in the URL with target_session_attrs=read-write"
            if standby
            else "unset default_transaction_read_only for this role or database",
        )


def _address(connection: Connection) -> str:
    info = connection.info
    return f"host={info.host or info.hostaddr} port={info.port} dbname={info.dbname} user={info.user}"


@dataclass(frozen=True)
class Session:
    """Another session in pg_stat_activity; an empty field is hidden or not set."""

    pid: int
    application: str
    user: str
    client: str
    state: str
    since: str

    def __str__(self) -> str:
        """Describe the session for a message."""
        parts = [f"pid {self.pid}"]
        parts += [f"application {self.application!r}"] if self.application else []
        parts += [f"user {self.user}"] if self.user else []
        parts += [f"from {self.client}"] if self.client else []
        parts += [self.state] if self.state else []
        parts += [f"since {self.since}"] if self.since else []
        return ", ".join(parts)


_SESSION = (
    "a.pid, coalesce(a.application_name, ''), coalesce(a.usename, ''), coalesce(host(a.client_addr), ''),"
    " coalesce(a.state, ''),"
    " coalesce(to_char(coalesce(a.xact_start, a.backend_start), 'YYYY-MM-DD HH24:MI:SS TZ'), '')"
)


def _sessions(rows: Sequence[tuple[object, ...]]) -> list[Session]:
    return [Session(int(str(pid)), *(str(text) for text in texts)) for pid, *texts in rows]


def blockers(connection: Connection, pid: int) -> list[Session]:
    """Return the sessions that block the server process `pid`. `connection` must be another session."""
    query = f"SELECT {_SESSION} FROM unnest(pg_blocking_pids(%s)) b(pid) JOIN pg_stat_activity a USING (pid)"  # noqa: S608
    return _sessions(connection.execute(query, (pid,)).fetchall())


_ADVISORY = "l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid = 0 AND l.objid::bigint = ANY({})"
"""Session-level locks with one key of up to 32 bits, like golang-migrate's."""


def holders(connection: Connection, keys: Sequence[int]) -> list[Session]:
    """Return the other sessions that hold any of these advisory locks."""
    query = sql.SQL(
        f"SELECT DISTINCT {_SESSION} FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_database d"  # noqa: S608
        f" ON d.oid = l.database WHERE {_ADVISORY} AND d.datname = current_database() AND l.pid <> pg_backend_pid()"
    )
    return _sessions(connection.execute(query.format(sql.Literal(list(keys)))).fetchall())


def locks_held(keys: Sequence[int]) -> sql.Composed:
    """Return a query that shows whether its own session still holds all of these advisory locks."""
    query = sql.SQL(f"SELECT count(*) = {{}} AS held FROM pg_locks l WHERE {_ADVISORY} AND l.pid = pg_backend_pid()")  # noqa: S608
    return query.format(sql.Literal(len(set(keys))), sql.Literal(list(keys)))


def send_message(connection: Connection, message: bytes) -> list[tuple[bytes | None, ...]]:
    """Run trusted statements as one message and return the rows of the last one, as text.

    Several times faster than a cursor, which matters for statements run once per file. Raises psycopg.Error.
    """
    result = connection.pgconn.exec_(message)
    if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
        raise psycopg.errors.error_from_result(result)
    return [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]


def send_within(connection: Connection, message: bytes, seconds: float) -> bool:
    """Send one statement and wait up to `seconds` for its end; return False if it is still running.

    The statement then continues on the server; the connection can only be closed. Raises psycopg.Error.
    """
    raw = connection.pgconn
    raw.send_query(message)
    until = time.monotonic() + seconds
    while raw.is_busy():
        if not select.select([raw.socket], [], [], max(0.0, until - time.monotonic()))[0]:
            return False
        raw.consume_input()
    while (result := raw.get_result()) is not None:
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result)
    return True


def try_locks(connection: Connection, keys: Sequence[int]) -> bool:
    """Take all of these advisory locks in this order, or none, without waiting."""
    for taken, key in enumerate(keys):
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
        if row is None or not row[0]:
            _release(connection, keys[:taken])
            return False
    return True


def _release(connection: Connection, keys: Sequence[int]) -> None:
    for key in reversed(keys):
        connection.execute("SELECT pg_advisory_unlock(%s)", (key,))


@contextmanager
def hold_locks(
    connection: Connection,
    keys: Sequence[int],
    *,
    wait_s: float,
    what: str,
    waiting: Callable[[float, list[Session]], None] = lambda _seconds, _sessions: None,
) -> Iterator[None]:
    """Hold session-level advisory locks, taken in this order, during a `with` block.

    Polls instead of queueing: a session waiting in pg_advisory_lock() keeps a snapshot, and CREATE INDEX
    CONCURRENTLY in the holder's session would wait for it: a deadlock. `waiting` is called after each failed attempt
    and may raise. After `wait_s` seconds (0: wait forever) raises DatabaseError with the holders.
    """
    begun = time.monotonic()
    pause, longest = POLL_S
    while not try_locks(connection, keys):
        waited = time.monotonic() - begun
        others = holders(connection, keys)
        if wait_s and waited >= wait_s:
            raise DatabaseError(
                f"another session holds {what}",
                where=_address(connection),
                seen=f"waited {waited:.0f} s for " + ("; ".join(map(str, others)) or "a session that has ended"),
                allowed="one holder at a time",
                run="wait and try again; if the session is orphaned: "
                + " ".join(f"SELECT pg_terminate_backend({other.pid});" for other in others),
            )
        waiting(waited, others)
        time.sleep(min(pause, wait_s - waited) if wait_s else pause)
        pause = min(2 * pause, longest)
    try:
        yield
    finally:
        with suppress(psycopg.Error):  # a broken session has already released them
            _release(connection, keys)


def identifier(*parts: str) -> str:
    """Return a quoted SQL identifier as text, for messages; statements are composed with psycopg.sql."""
    # Not psycopg.sql, whose 3.1.7 (Debian 12) needs a connection for this.
    return ".".join(map(double, parts))


def environment(url: str) -> dict[str, str]:
    """Return the PG* variables equivalent to a libpq URL, which keep the password off the command line.

    An empty value is kept: it hides that of this process's environment.
    """
    options = psycopg.pq.Conninfo.parse(urls.read(url).url.encode())
    return {
        option.envvar.decode(): option.val.decode() for option in options if option.envvar and option.val is not None
    }


def describe_connection(connection: Connection) -> str:
    """Describe a session: host, port, database, user."""
    return _address(connection)


def ask(connection: Connection, query: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
    """Run one trusted query and return its rows, for callers without psycopg. Raises DatabaseError."""
    try:
        return connection.execute(query.encode(), parameters or None).fetchall()
    except psycopg.Error as error:
        raise DatabaseError(
            "the server refused a query", where=_address(connection), seen=str(error).strip().partition("\n")[0]
        ) from None
