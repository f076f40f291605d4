"""What the server knows and no exporter asks: migrations, headroom of counters, bloat, HNSW, retention. Does IO.

As a role that may read and nothing else. Every query reads catalogues and statistics, or the end of an index: none
reads a table, however large it is. What is not there yet (a table before its migration) has no sample.

Bloat is an estimate from the planner's statistics: rows of their average width in pages that are filled as the table
wants them; a table that was never analyzed has none. It knows nothing of padding, so up to a tenth means nothing.
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
# Both counters are 32 bits wide, and the server stops some three million before their half is used.
_COUNTERS = "SELECT datname, age(datfrozenxid)::float8 / 2^31, mxid_age(datminmxid)::float8 / 2^31 FROM pg_database"
_SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename),
    ((last_value - min_value)::numeric / nullif(max_value::numeric - min_value, 0))::float8
FROM pg_sequences WHERE NOT cycle AND increment_by > 0 AND last_value IS NOT NULL
"""
# The 28 bytes are the row's header and its line pointer, 24 the page's; whole rows alone fit into a page.
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
"""  # noqa: S608 - both parts are ours
_HNSW = """
SELECT format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid)::float8
FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_namespace n ON n.oid = c.relnamespace WHERE a.amname = 'hnsw'
"""
_SHARED_BUFFERS = "SELECT setting::float8 * 8192 FROM pg_settings WHERE name = 'shared_buffers'"
# Tables alone, for a view of that name would run its functions as whoever asks.
_IS_TABLE = "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(%s) AND relkind IN ('r', 'p'))"
_MIGRATION = "SELECT version::float8, dirty::int FROM public.schema_migrations"

_DUE = re.compile(r"(?:(?P<rows>.+) AND )?(?P<column>\w+) < \{(?P<limit>cutoff|now)\}")
"""The form of a retention rule's condition: which rows, and the column whose age decides."""


def metrics(connection: Connection, maintenance: Maintenance) -> list[Metric]:
    """Query the session's database. `maintenance` has the retention rules, whose ages are reported."""
    tables = ask(connection, _TABLES)
    counters = ask(connection, _COUNTERS)
    return [
        single("provision_wal_archiving_failing",
               "1 when the last try to archive WAL failed; no sample: archiving is off.",
               _number(ask(connection, _ARCHIVER))),
        *_migrations(connection),
        Metric("provision_sequence_used_ratio", "Share of a sequence's numbers that is used.",
               _by("sequence", ask(connection, _SEQUENCES))),
        Metric("provision_transaction_ids_used_ratio", "Share of the ids until wraparound, where the server stops.",
               _by("database", counters)),
        Metric("provision_multixact_ids_used_ratio", "The same of multixact ids.",
               _by("database", [(row[0], row[2]) for row in counters])),
        Metric("provision_table_bytes", "Size of a table without its indexes.", _by("table", tables)),
        Metric("provision_table_bloat_bytes", "Of it what holds no row, by an estimate.",
               _by("table", [(row[0], row[2]) for row in tables])),
        # The exporter of Debian 12 does not tell it.
        Metric("provision_table_dead_rows", "Rows that VACUUM has not removed yet.",
               _by("table", [(row[0], row[3]) for row in tables])),
        Metric("provision_hnsw_index_bytes", "Size of an HNSW index, all of which searches touch.",
               _by("index", ask(connection, _HNSW))),
        single("provision_shared_buffers_bytes", "The server's own cache.", _number(ask(connection, _SHARED_BUFFERS))),
        *_retention(connection, maintenance),
    ]  # fmt: skip


def _migrations(connection: Connection) -> list[Metric]:
    rows = ask(connection, _MIGRATION) if _there(connection, "schema_migrations") else []
    return [
        single("provision_migration_version", "Version of the schema.", _number(rows)),
        single("provision_migration_dirty", "1 when a migration did not end well.", _number(rows, 1)),
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
        Metric("provision_retention_oldest_seconds", "Age of the oldest row that a retention rule looks at.",
               _by("rule", ages)),
        Metric("provision_retention_promised_seconds", "Age at which the rule promises to take it.",
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
    return bool(ask(connection, _IS_TABLE, (f"public.{table}",))[0][0])


def _by(label: str, rows: Sequence[tuple[object, ...]]) -> tuple[tuple[dict[str, str], float], ...]:
    return tuple(({label: str(row[0])}, float(str(row[1]))) for row in rows if row[1] is not None)


def _number(rows: list[tuple[object, ...]], column: int = 0) -> float | None:
    return float(str(rows[0][column])) if rows and rows[0][column] is not None else None
