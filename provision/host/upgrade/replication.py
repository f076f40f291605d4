"""Logical replication from one server of an upgrade to the other: a publication, a slot and a subscription by database.

Does IO, as the superuser over Unix sockets, so that no password is stored. Only one direction exists at a time: a
subscription is dropped before the one of the other direction begins, so that no change can come back to its origin.
Every function can be repeated after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

import psycopg
from psycopg import sql

from provision.database import Connection, ask
from provision.errors import HostError
from provision.host.upgrade import commands
from provision.host.upgrade.sessions import databases, session_of
from provision.plan.schema import Plan

NAME = "provision_upgrade"
"""Of the publication and the subscription in each database; slots add the database's OID."""
SLOTS = rf"^({NAME}_|pg_\d+_sync_)"
"""Slots of the subscriptions, and of their initial copies (manual, "Replication Slot Management")."""
ORIGIN_SINCE, COUNTS_ERRORS_SINCE = 16, 15
POLL_S, SETTLE_S, SHOW_S = 0.05, 0.2, 10.0
CATCH_UP_S = 60.0
"""Time for the last changes, once nothing writes any more."""
TABLES = """
SELECT c.oid, c.oid::regclass::text, c.relpersistence::text, c.relreplident::text,
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary), pg_table_size(c.oid), c.relkind::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.oid >= 16384 AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_t'
  AND c.relpersistence <> 't' ORDER BY 2
"""
PROGRESS = """
SELECT r.srrelid::regclass::text, r.srsubstate::text, coalesce(p.bytes_processed, 0)
FROM pg_subscription_rel r LEFT JOIN pg_stat_progress_copy p ON p.relid = r.srrelid
  AND p.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
COPIED = "fsr"
"""States of a table whose rows are copied: finished copy, synchronised, ready (manual, pg_subscription_rel)."""
BEHIND = f"""
SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)), 0)::bigint, count(*),
  coalesce(bool_or(wal_status = 'lost'), false)
FROM pg_replication_slots WHERE slot_name ~ '^{NAME}_'
"""  # noqa: S608 - a constant
CONFIRMED = f"""
SELECT database FROM pg_replication_slots
WHERE slot_name ~ '^{NAME}_' AND confirmed_flush_lsn >= %s::pg_lsn AND database::text = ANY (%s)
"""  # noqa: S608 - a constant


WRITERS = """
SELECT pid, usename::text, datname::text, to_char(xact_start, 'YYYY-MM-DD HH24:MI:SS') FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - %s * interval '1 second' ORDER BY xact_start
"""
LONG_S = 10
"""Age in seconds from which a transaction is shown."""


def filled(plan: Plan) -> list[str]:
    """Name the databases that have tables, which are the ones to replicate."""
    found = []
    for name in databases(plan):
        with session_of(plan, name) as session:
            if ask(session, TABLES):
                found.append(name)
    return found


def publish(plan: Plan, names: Iterable[str]) -> None:
    """Publish every table of each database. Raises DatabaseError."""
    for name in names:
        with session_of(plan, name) as session:
            if not ask(session, "SELECT FROM pg_publication WHERE pubname = %s", [NAME]):
                session.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(NAME)))


def writers(plan: Plan) -> list[str]:
    """Describe the transactions for whose end a new subscription waits: all that write and began some time ago."""
    with session_of(plan) as session:
        return [
            f"the transaction of process {pid} (user {user}, database {database}), open since {since}; to end it: "
            f"SELECT pg_terminate_backend({pid})"
            for pid, user, database, since in ask(session, WRITERS, [LONG_S])
        ]


def reserve(plan: Plan, names: Iterable[str]) -> None:
    """Create the slot of each database: from here on the server keeps every change for its later subscriber."""
    for name in names:
        with session_of(plan, name) as session:
            slot = slot_of(session)
            if not ask(session, "SELECT FROM pg_replication_slots WHERE slot_name = %s", [slot]):
                ask(session, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])


def slot_of(session: Connection) -> str:
    """Name the slot of the session's database."""
    ((oid,),) = ask(session, "SELECT oid FROM pg_database WHERE datname = current_database()")
    return f"{NAME}_{oid}"


def subscribe(source: Plan, target: Plan, names: Iterable[str], *, copy: bool) -> None:
    """Begin to replicate each database: with its rows, or only the changes since `reserve`. Raises DatabaseError."""
    for name in names:
        with session_of(source, name) as session:
            slot = slot_of(session)
            with session_of(target, name) as other:
                if ask(other, "SELECT FROM pg_subscription WHERE subname = %s AND subslotname = %s", [NAME, slot]):
                    continue
                if copy:  # a killed CREATE SUBSCRIPTION leaves a slot that keeps WAL, without a subscription
                    _drop_slots(session)
                options = f"slot_name = {slot}, copy_data = {copy}, create_slot = {copy}"
                if target.server.major >= ORIGIN_SINCE:
                    options += ", origin = none"
                other.execute(
                    sql.SQL("CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH ({})").format(
                        sql.Identifier(NAME), sql.Literal(source.server.url(name)), sql.Identifier(NAME),
                        sql.SQL(options),
                    )
                )  # fmt: skip


def redirect(source: Plan, target: Plan) -> None:
    """Give the subscriptions of the target the place where the source listens now. Raises DatabaseError."""
    for name in subscribed(target):
        with session_of(target, name) as session:
            session.execute(
                sql.SQL("ALTER SUBSCRIPTION {} CONNECTION {}").format(
                    sql.Identifier(NAME), sql.Literal(source.server.url(name))
                )
            )


def subscribed(plan: Plan) -> list[str]:
    """Name the databases that have a subscription of an upgrade."""
    query = "SELECT d.datname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE subname = %s"
    with session_of(plan) as session:
        return [str(row[0]) for row in ask(session, f"{query} ORDER BY 1", [NAME])]


def unsubscribe(target: Plan) -> None:
    """Drop the subscriptions of a server; their slots stay, as their server may not run. Raises DatabaseError."""
    name = sql.Identifier(NAME)
    for database in subscribed(target):
        with session_of(target, database) as session:
            for change in ("DISABLE", "SET (slot_name = NONE)"):
                session.execute(sql.SQL("ALTER SUBSCRIPTION {} {}").format(name, sql.SQL(change)))
            session.execute(sql.SQL("DROP SUBSCRIPTION {}").format(name))


def retire(source: Plan) -> None:
    """Drop slots and publications of a server, after its subscribers. Raises DatabaseError, HostError."""
    for name in databases(source):
        with session_of(source, name) as session:
            _drop_slots(session)
            session.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(NAME)))


def _drop_slots(session: Connection) -> None:
    """Drop this database's slots of an upgrade; a walsender that still ends gets a moment."""
    query = (
        "SELECT slot_name::text, active_pid FROM pg_replication_slots"
        " WHERE database = current_database() AND slot_name ~ %s"
    )
    deadline = time.monotonic() + CATCH_UP_S
    while slots := ask(session, query, [SLOTS]):
        for slot, pid in slots:
            if pid is not None:
                ask(session, "SELECT pg_terminate_backend(%s)", [pid])
                continue
            try:
                session.execute("SELECT pg_drop_replication_slot(%s)", [str(slot)])
            except psycopg.errors.ObjectInUse:
                continue
        if time.monotonic() > deadline:
            raise HostError("replication slots stay in use", where=session.info.dbname, seen=str(slots))
        time.sleep(POLL_S)


def progress(target: Plan, sizes: dict[str, int]) -> tuple[int, int, int]:
    """Return the percentage of the initial copy, and how many of the tables are copied. `sizes` are of the source."""
    done = total = copied = tables = 0
    for database in subscribed(target):
        with session_of(target, database) as session:
            for table, state, read in ask(session, PROGRESS):
                size = sizes.get(f"{database} {table}", 0)
                ready = str(state) in COPIED
                tables, copied, total = tables + 1, copied + ready, total + size
                done += size if ready else min(size, int(str(read)))
    return (100 if copied == tables else min(99, 100 * done // max(1, total))), copied, tables


def errors(target: Plan) -> str:
    """Count the errors of a server's subscriptions, which try again, for a line of progress; "" without one."""
    if target.server.major < COUNTS_ERRORS_SINCE:
        return ""
    query = "SELECT coalesce(sum(apply_error_count + sync_error_count), 0)::bigint FROM pg_stat_subscription_stats"
    with session_of(target) as session:
        ((count,),) = ask(session, query)
    log = f"/var/log/postgresql/postgresql-{target.server.major}-main.log"
    return f"; {count} errors, see {log}" if count else ""


def sizes(plan: Plan, names: Iterable[str]) -> dict[str, int]:
    """Return the bytes of each table, by `DATABASE TABLE`."""
    found = {}
    for name in names:
        with session_of(plan, name) as session:
            found.update({f"{name} {row[1]}": int(str(row[5])) for row in ask(session, TABLES)})
    return found


def behind(source: Plan) -> int:
    """Return how many bytes of WAL the slowest subscriber has not confirmed. Raises HostError for a lost slot."""
    with session_of(source) as session:
        count, _slots, lost = ask(session, BEHIND)[0]
    if lost:
        raise HostError(
            "the server has removed WAL that the other server still needs", where=source.server.unit,
            seen="a slot is lost: the changes since then are more than max_slot_wal_keep_size",
            allowed="a larger max_slot_wal_keep_size (postgresql_settings)",
            run=f"{commands.rollback(source)}, then begin again",
        )  # fmt: skip
    return int(str(count))


def confirmed(source: Plan, names: Collection[str], seconds: float = CATCH_UP_S) -> None:
    """Wait until the subscribers have written all that these databases of the source have, which no client changes.

    Raises HostError.
    """
    deadline = time.monotonic() + seconds
    with session_of(source) as session:
        ((end,),) = ask(session, "SELECT pg_current_wal_lsn()::text")
        while len(ask(session, CONFIRMED, [end, list(names)])) != len(names):
            if time.monotonic() > deadline:
                raise HostError(
                    f"the other server did not write the last changes within {seconds:.0f} s",
                    where=source.server.unit, seen=f"{behind(source)} bytes of WAL are not confirmed",
                    run="read the log of the other server (/var/log/postgresql)",
                )  # fmt: skip
            time.sleep(POLL_S)


def settle(source: Plan, target: Plan, *, most: int, show: Callable[[str, str], None]) -> None:
    """Wait until every table is copied and at most `most` bytes of WAL are not confirmed; show what is left."""
    query = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'"
    quiet = 0.0
    while True:
        open_tables = 0
        for database in subscribed(target):
            with session_of(target, database) as session:
                open_tables += int(str(ask(session, query)[0][0]))
        left = behind(source)
        if not open_tables and left <= most:
            return
        if time.monotonic() >= quiet:
            said = f"{left / 2**20:.1f} MB of WAL behind, {open_tables} tables not synchronised"
            show(said, errors(target))
            quiet = time.monotonic() + SHOW_S
        time.sleep(SETTLE_S)
