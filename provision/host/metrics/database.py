"""Metrics of the database that no exporter has: migrations, counter headroom, bloat, HNSW, retention. Does IO.

Queries read catalogues, statistics or the end of an index, never a whole table. A missing object (a table before its
migration) has no sample. `tables` belongs in a session of the owner: its queries can run the owner's code.

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
SCHEMAS = "n.nspname NOT LIKE ALL (ARRAY['pg\\_%', 'information\\_schema'])"

_ARCHIVER = """
SELECT (coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false))::int
FROM pg_stat_archiver WHERE current_setting('archive_mode') <> 'off'
"""
# Both counters have 32 bits; the server stops about three million before half of them is used.
_COUNTERS = "SELECT datname, age(datfrozenxid)::float8 / 2^31, mxid_age(datminmxid)::float8 / 2^31 FROM pg_database"
_SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename),
    ((last_value - min_value)::numeric / nullif(max_value::numeric - min_value, 0))::float8
FROM pg_sequences WHERE NOT cycle AND increment_by > 0 AND last_value IS NOT NULL
"""
# 28 bytes are the row header and line pointer, 24 the page header; a page holds only whole rows.
_TABLES = f"""
SELECT table_name, bytes::float8,
    CASE WHEN analyzed THEN greatest(bytes - 8192 * ceil(rows / greatest(floor(room / width), 1)), 0)::float8 END,
    pg_stat_get_dead_tuples(oid)::float8
FROM (
    SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS table_name, pg_relation_size(c.oid) AS bytes,
        greatest(c.reltuples, 0) AS rows, c.reltuples >= 0 AND s.width IS NOT NULL AS analyzed,
        28 + coalesce(s.width, 0) AS width,
        8168 * coalesce((SELECT split_part(o, '=', 2)::float8 / 100 FROM unnest(c.reloptions) o
            WHERE o LIKE 'fillfactor=%'), 1) AS room
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (SELECT sum(avg_width * (1 - null_frac)) AS width FROM pg_stats
        WHERE schemaname = n.nspname AND tablename = c.relname) s ON true
    WHERE c.relkind IN ('r', 'm') AND {SCHEMAS}
) t
"""  # noqa: S608 - constants of this module
_HNSW = """
SELECT format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid)::float8
FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace WHERE a.amname = 'hnsw'
"""
_SLOTS = """
SELECT coalesce(max(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
    ELSE pg_current_wal_lsn() END, restart_lsn)), 0)::float8
FROM pg_replication_slots WHERE NOT active AND NOT temporary
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


def catalogue(connection: Connection) -> list[Metric]:
    """Query catalogues and statistics of the session's database, for a role that may read all statistics."""
    found = ask(connection, _TABLES)
    counters = ask(connection, _COUNTERS)
    return [
        single("provision_wal_archiving_failing",
               "1 if the last attempt to archive WAL failed; no sample: archiving is off.",
               _number(ask(connection, _ARCHIVER))),
        single("provision_inactive_slot_wal_bytes", "WAL kept for replication slots without a consumer.",
               _number(ask(connection, _SLOTS))),
        Metric("provision_sequence_used_ratio", "Used share of a sequence.",
               _by("sequence", ask(connection, _SEQUENCES))),
        Metric("provision_transaction_ids_used_ratio", "Used share of transaction ids before wraparound.",
               _by("database", counters)),
        Metric("provision_multixact_ids_used_ratio", "Used share of multixact ids before wraparound.",
               _by("database", [(row[0], row[2]) for row in counters])),
        Metric("provision_table_bytes", "Size of a table without its indexes.", _by("table", found)),
        Metric("provision_table_bloat_bytes", "Estimated bloat of a table.",
               _by("table", [(row[0], row[2]) for row in found])),
        # Debian 12's exporter lacks it.
        Metric("provision_table_dead_rows", "Dead rows that VACUUM has not removed yet.",
               _by("table", [(row[0], row[3]) for row in found])),
        Metric("provision_hnsw_index_bytes", "Size of an HNSW index; searches use all of it.",
               _by("index", ask(connection, _HNSW))),
        Metric("provision_checksum_failures_total", "Pages of a database whose checksum was wrong.",
               _by("database", ask(connection, _CHECKSUMS)), kind="counter"),
        single("provision_shared_buffers_bytes", "Size of shared_buffers.", _number(ask(connection, _SHARED_BUFFERS))),
    ]  # fmt: skip


def tables(connection: Connection, maintenance: Maintenance) -> list[Metric]:
    """Query tables of the owner, in a session of the owner. `maintenance` has the retention rules to report."""
    return [*_migrations(connection), *_retention(connection, maintenance)]


def _migrations(connection: Connection) -> list[Metric]:
    rows = ask(connection, _MIGRATION) if _there(connection, "schema_migrations") else []
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
        ages.append((rule.name, ask(connection, _oldest(rule).as_string(connection))[0][0]))
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
    return bool(ask(connection, _IS_TABLE, (table,))[0][0])


def _by(label: str, rows: Sequence[tuple[object, ...]]) -> tuple[tuple[dict[str, str], float], ...]:
    return tuple(({label: str(row[0])}, float(str(row[1]))) for row in rows if row[1] is not None)


def _number(rows: list[tuple[object, ...]], column: int = 0) -> float | None:
    return float(str(rows[0][column])) if rows and rows[0][column] is not None else None
