"""Metrics of the database that no exporter has: migrations, counter headroom, bloat, HNSW, retention. Does IO.

Queries read catalogues, statistics or the end of an index, never a whole table. A missing object (a table before its
migration) has no sample. `tables` belongs in a session of the owner: its queries can run the owner's code.

Every role that may write can lock a table. A locked relation is left out, because its size would wait for the lock, and
is listed in provision_relation_unread. Each query has time limits, also for a lock that is taken meanwhile.

Many tenants have many tables, so the number of series is bounded: MOST tables and indexes, those of public and then the
largest, and the MOST used sequences.

Bloat is an estimate from the planner's statistics: rows of average width in pages filled to the fillfactor. A table
that was never analyzed has no estimate. Padding is ignored, so up to 10 % is noise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from psycopg import sql

from provision.database import Connection, ask
from provision.host.maintain.batches import EXPIRED
from provision.host.metrics.exposition import Metric, single
from provision.plan.schema import Maintenance, Retention

DAY_S = 86400
STATEMENT_TIMEOUT_MS = 5_000
LOCK_TIMEOUT_MS = 1_000
LIMITS = f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}; SET lock_timeout = {LOCK_TIMEOUT_MS}"
"""Set before each query: the owner's code in the one before may have changed them."""
MOST = 500
OTHERS = "all others"
SCHEMAS = "n.nspname NOT LIKE ALL (ARRAY['pg\\_%', 'information\\_schema'])"

# Modes that the functions of the queries below wait for: ACCESS SHARE of a size, ROW EXCLUSIVE of a sequence.
_HELD = """
WITH held AS MATERIALIZED (SELECT DISTINCT relation FROM pg_locks WHERE locktype = 'relation'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
    AND (mode = 'AccessExclusiveLock' OR (mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')
        AND EXISTS (SELECT FROM pg_class WHERE oid = relation AND relkind = 'S'))))
"""
_UNREAD = f"""
{_HELD} SELECT format('%I.%I', n.nspname, c.relname), 1::float8
FROM held JOIN pg_class c ON c.oid = held.relation JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {SCHEMAS}
LIMIT {MOST}
"""  # noqa: S608 - constants of this module
_LOCKED = f"""
{_HELD} SELECT EXISTS (SELECT FROM held WHERE relation = to_regclass('public.' || quote_ident(%s)))
"""  # noqa: S608 - constants of this module
_ARCHIVER = """
SELECT (coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false))::int
FROM pg_stat_archiver WHERE current_setting('archive_mode') <> 'off'
"""
# Both counters have 32 bits; the server stops about three million before half of them is used.
_COUNTERS = "SELECT datname, age(datfrozenxid)::float8 / 2^31, mxid_age(datminmxid)::float8 / 2^31 FROM pg_database"
_SEQUENCES = f"""
{_HELD} SELECT format('%I.%I', n.nspname, c.relname),
    CASE WHEN c.oid NOT IN (SELECT relation FROM held) AND has_sequence_privilege(c.oid, 'SELECT, USAGE')
        AND NOT pg_is_other_temp_schema(n.oid)
        THEN ((pg_sequence_last_value(c.oid) - s.seqmin)::numeric
            / nullif(s.seqmax::numeric - s.seqmin, 0))::float8 END
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT s.seqcycle AND s.seqincrement > 0 ORDER BY 2 DESC NULLS LAST LIMIT {MOST}
"""  # noqa: S608 - constants of this module
# 28 bytes are the row header and line pointer, 24 the page header; a page holds only whole rows.
_TABLES = f"""
{_HELD} SELECT table_name, bytes::float8,
    CASE WHEN analyzed THEN greatest(bytes - 8192 * ceil(rows / greatest(floor(room / width), 1)), 0)::float8 END,
    pg_stat_get_dead_tuples(oid)::float8
FROM (
    SELECT c.oid, format('%I.%I', c.nspname, c.relname) AS table_name,
        CASE WHEN c.oid NOT IN (SELECT relation FROM held) THEN pg_relation_size(c.oid) END AS bytes,
        greatest(c.reltuples, 0) AS rows, c.reltuples >= 0 AND s.width IS NOT NULL AS analyzed,
        28 + coalesce(s.width, 0) AS width,
        8168 * coalesce((SELECT split_part(o, '=', 2)::float8 / 100 FROM unnest(c.reloptions) o
            WHERE o LIKE 'fillfactor=%'), 1) AS room
    FROM (SELECT n.nspname, c.oid, c.relname, c.reltuples, c.reloptions
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'm') AND {SCHEMAS}
        ORDER BY n.nspname = 'public' DESC, c.relpages DESC, c.oid LIMIT {MOST}) c
    LEFT JOIN LATERAL (SELECT sum(avg_width * (1 - null_frac)) AS width FROM pg_stats
        WHERE schemaname = c.nspname AND tablename = c.relname) s ON true
) t
"""  # noqa: S608 - constants of this module
_HNSW = f"""
{_HELD}, ranked AS (SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relpages,
    row_number() OVER (ORDER BY n.nspname = 'public' DESC, c.relpages DESC, c.oid) AS place FROM pg_class c
    JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace WHERE a.amname = 'hnsw')
SELECT name, CASE WHEN oid NOT IN (SELECT relation FROM held) THEN pg_relation_size(oid)::float8 END
FROM ranked WHERE place <= {MOST}
UNION ALL SELECT NULL, sum(relpages)::float8 * current_setting('block_size')::int
FROM ranked WHERE place > {MOST} HAVING count(*) > 0
"""  # noqa: S608 - constants of this module
_SLOTS = """
SELECT slot_name, greatest(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
    ELSE pg_current_wal_lsn() END, restart_lsn), 0)::float8, active
FROM pg_replication_slots WHERE NOT temporary
"""
# NULL without checksums; the row without a database is that of the shared catalogues.
_CHECKSUMS = "SELECT coalesce(datname, 'shared catalogues'), checksum_failures::float8 FROM pg_stat_database"
_SHARED_BUFFERS = "SELECT setting::float8 * 8192 FROM pg_settings WHERE name = 'shared_buffers'"
# Only tables: a view in place of one has no oldest row.
_IS_TABLE = """
SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.' || quote_ident(%s)) AND relkind IN ('r', 'p'))
"""
_MIGRATION = "SELECT version::float8, dirty::int FROM public.schema_migrations"

_DUE = re.compile(r"(?:(?P<rows>.+) AND )?(?P<column>\w+) < \{(?P<limit>cutoff|now)\}")
"""The form of a retention rule's condition: a filter, and the column whose age decides."""


def server(connection: Connection) -> list[Metric]:
    """Query the server's statistics and counters, which no lock on a table delays."""
    counters, slots = ask(connection, _COUNTERS), ask(connection, _SLOTS)
    return [
        single("provision_wal_archiving_failing",
               "1 if the last attempt to archive WAL failed; no sample: archiving is off.",
               _number(ask(connection, _ARCHIVER))),
        single("provision_inactive_slot_wal_bytes", "WAL kept for replication slots without a consumer.",
               max((kept for _, kept in _by("slot", [row for row in slots if not row[2]])), default=0.0)),
        Metric("provision_slot_wal_bytes", "WAL kept for a replication slot.",
               _by("slot", slots)),
        Metric("provision_transaction_ids_used_ratio", "Used share of transaction ids before wraparound.",
               _by("database", counters)),
        Metric("provision_multixact_ids_used_ratio", "Used share of multixact ids before wraparound.",
               _by("database", [(row[0], row[2]) for row in counters])),
        Metric("provision_checksum_failures_total", "Pages of a database whose checksum was wrong.",
               _by("database", ask(connection, _CHECKSUMS)), kind="counter"),
        single("provision_shared_buffers_bytes", "Size of shared_buffers.", _number(ask(connection, _SHARED_BUFFERS))),
        Metric("provision_relation_unread", "1 for a table, index or sequence that a lock kept from being measured.",
               _by("relation", ask(connection, _UNREAD))),
    ]  # fmt: skip


def sizes(connection: Connection) -> list[Metric]:
    """Query the size and bloat of tables, for a role that may read all statistics."""
    found = ask(connection, _TABLES)
    return [
        Metric("provision_table_bytes", "Size of a table without its indexes.", _by("table", found)),
        Metric("provision_table_bloat_bytes", "Estimated bloat of a table.",
               _by("table", [(row[0], row[2]) for row in found])),
        # Debian 12's exporter lacks it.
        Metric("provision_table_dead_rows", "Dead rows that VACUUM has not removed yet.",
               _by("table", [(row[0], row[3]) for row in found])),
    ]  # fmt: skip


def indexes(connection: Connection) -> list[Metric]:
    """Query the size of vector indexes."""
    found = _by("index", [(name or OTHERS, size) for name, size in ask(connection, _HNSW)])
    return [Metric("provision_hnsw_index_bytes", "Size of an HNSW index; searches use all of it.", found)]


def sequences(connection: Connection) -> list[Metric]:
    """Query how much of each sequence is used."""
    found = _by("sequence", ask(connection, _SEQUENCES))
    return [Metric("provision_sequence_used_ratio", "Used share of a sequence.", found)]


CATALOGUE = {"database": server, "sizes": sizes, "indexes": indexes, "sequences": sequences}
"""Collectors that read the catalogues; one that fails does not stop the others."""


def tables(connection: Connection, maintenance: Maintenance) -> list[Metric]:
    """Query tables of the owner, in a session of the owner. `maintenance` has the retention rules to report."""
    return [*_migrations(connection), *_retention(connection, maintenance)]


def _migrations(connection: Connection) -> list[Metric]:
    rows = _ask(connection, _MIGRATION) if _there(connection, "schema_migrations") else []
    return [
        single("provision_migration_version", "Version of the schema.", _number(rows)),
        single("provision_migration_dirty", "1 if the last migration failed.", _number(rows, 1)),
    ]


def _retention(connection: Connection, maintenance: Maintenance) -> list[Metric]:
    ages, limits = [], []
    kept = [(rule, rule.days) for rule in maintenance.retention if rule.days]
    for rule, days in [*kept, *([(EXPIRED, 0)] if maintenance.cleanup else [])]:
        if not _there(connection, rule.table):
            continue
        ages.append((rule.name, _ask(connection, _oldest(rule).as_string(connection))[0][0]))
        limits.append((rule.name, float(days * DAY_S)))
    return [
        Metric("provision_retention_oldest_seconds", "Age of the oldest row that a retention rule applies to.",
               _by("rule", ages)),
        Metric("provision_retention_promised_seconds", "Age at which the retention rule removes or archives a row.",
               _by("rule", limits)),
    ]  # fmt: skip


def _oldest(rule: Retention) -> sql.Composed:
    """Build the query for the age in seconds of the oldest row that the rule applies to."""
    found = _DUE.fullmatch(rule.due)
    column, rows, limit = found.group("column", "rows", "limit") if found else (rule.column, None, "cutoff")
    name = sql.Identifier(column)
    where: list[sql.Composable] = [sql.SQL(rows)] if rows else []
    where += [sql.SQL("{} < now()").format(name)] if limit == "now" else []
    return sql.SQL("SELECT coalesce(extract(epoch FROM now() - min({})), 0)::float8 FROM {}{}").format(
        name,
        sql.Identifier("public", rule.table),
        sql.SQL(" WHERE ") + sql.SQL(" AND ").join(where) if where else sql.SQL(""),
    )


def _there(connection: Connection, table: str) -> bool:
    """Return whether a table of the owner exists and can be read now: a locked one is in provision_relation_unread."""
    found = _ask(connection, _IS_TABLE, (table,))[0][0]
    return bool(found) and not _ask(connection, _LOCKED, (table,))[0][0]


def _ask(connection: Connection, query: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
    connection.execute(LIMITS.encode())
    return ask(connection, query, parameters)


def _by(label: str, rows: Sequence[tuple[object, ...]]) -> tuple[tuple[dict[str, str], float], ...]:
    return tuple(({label: str(row[0])}, float(str(row[1]))) for row in rows if row[1] is not None)


def _number(rows: list[tuple[object, ...]], column: int = 0) -> float | None:
    return float(str(rows[0][column])) if rows and rows[0][column] is not None else None
