"""Measure index bloat and rebuild bloated indexes concurrently. Does IO.

B-tree: pgstatindex if the extension pgstattuple is installed and permitted, otherwise an estimate from the planner's
statistics: keys of average width in pages that are 90 % full (the default fillfactor). Deduplicated entries (PostgreSQL
13) are smaller, so the estimate is too low rather than too high.

HNSW: pgvector's VACUUM unlinks dead elements, but their pages stay in the file until later inserts reuse them. The file
size beyond the rows with a vector is bloat: it costs memory, and repaired links cost recall, until a rebuild. Layout of
an element: HnswElementTupleData and HnswNeighborTupleData in pgvector's hnsw.h.

An index is rebuilt only if both the share and the size of its bloat exceed the plan's limits. REINDEX (CONCURRENTLY)
does not block reads or writes. A killed one leaves an INVALID index named ..._ccnew, which slows every write and is
never used; the next run drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from provision.database import Connection
from provision.plan.schema import Maintenance

PAGE, USABLE = 8192, 8192 - 24  # bytes; USABLE excludes the page header
FULL = 0.9  # B-tree's default fillfactor
ENTRY = 8 + 4  # header of an index entry plus its line pointer
HNSW_ELEMENT = 72 + 8 + 4  # element header with ten heap addresses, vector header, line pointer
HNSW_LINK, HNSW_NEIGHBORS = 6, 4 + 4  # one link; header and line pointer of the neighbor list
WAIT_S = 600  # for older transactions, between phases of the build; waiting blocks no other session


@dataclass(frozen=True)
class Index:
    """An index: its bytes, the share that is bloat (`waste`, 0 to 1), and the method of measurement (`by`)."""

    name: str
    table: str
    method: str
    bytes: int
    waste: float
    by: str

    def due(self, maintenance: Maintenance) -> bool:
        """Return whether a rebuild is worth its cost."""
        return 100 * self.waste >= maintenance.bloat_percent and self.bytes * self.waste >= maintenance.bloat_mb * 2**20


# pg_class has no index on the schema, and would be read as a whole for each of a thousand tenants; pg_depend has one.
_INDEXES = """
WITH t AS MATERIALIZED (SELECT c.* FROM pg_namespace n JOIN pg_depend d ON d.refclassid = 'pg_namespace'::regclass
        AND d.refobjid = n.oid AND d.classid = 'pg_class'::regclass
    JOIN pg_class c ON c.oid = d.objid WHERE n.nspname = current_schema() AND c.relkind = 'r')
SELECT i.oid::regclass::text, t.oid::regclass::text, a.amname, pg_relation_size(i.oid)::bigint,
    greatest(t.reltuples, 0)::float8,
    coalesce((SELECT sum(CASE WHEN s.null_frac IS NULL THEN 8 ELSE s.avg_width * (1 - s.null_frac) END)
        FROM pg_attribute k LEFT JOIN pg_attribute c ON c.attrelid = t.oid AND c.attnum = ANY (x.indkey::int2[])
            AND c.attname = k.attname
        LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = t.relname AND s.attname = c.attname
        WHERE k.attrelid = i.oid), 8)::float8,
    x.indpred IS NOT NULL, greatest(i.reltuples, 0)::float8,
    coalesce((SELECT c.atttypmod FROM pg_attribute c WHERE c.attrelid = t.oid AND c.attnum = x.indkey[0]), 0),
    coalesce((SELECT split_part(o, '=', 2)::int FROM unnest(i.reloptions) o WHERE o LIKE 'm=%'), 16),
    coalesce((SELECT s.null_frac FROM pg_stats s JOIN pg_attribute c ON c.attrelid = t.oid AND c.attnum = x.indkey[0]
        WHERE s.schemaname = n.nspname AND s.tablename = t.relname AND s.attname = c.attname), 0)::float8
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am a ON a.oid = i.relam
WHERE x.indisvalid AND a.amname IN ('btree', 'hnsw') AND pg_has_role(t.relowner, 'USAGE')
ORDER BY 1
"""


def look(connection: Connection) -> list[Index]:
    """Measure every B-tree and HNSW index of the session's schema whose table this role owns."""
    exact = connection.execute(
        "SELECT 1 FROM pg_proc WHERE proname = 'pgstatindex' AND proargtypes[0] = 'regclass'::regtype"
        " AND has_function_privilege(oid, 'EXECUTE')"
    ).fetchone()
    found = []
    for row in connection.execute(_INDEXES).fetchall():
        name, table, method, size = str(row[0]), str(row[1]), str(row[2]), int(str(row[3]))
        rows, width, partial, entries = float(str(row[4])), float(str(row[5])), bool(row[6]), float(str(row[7]))
        if method == "hnsw":
            # reltuples after VACUUM; before the first VACUUM the table's rows with a vector.
            live = min(entries or rows, rows * (1 - float(str(row[10]))))
            waste, by = _hnsw(size, live, int(str(row[8])), int(str(row[9]))), "pages beside rows"
        elif exact:
            answer = connection.execute("SELECT avg_leaf_density FROM pgstatindex(%s::regclass)", (name,)).fetchone()
            density = float(str(answer[0])) if answer else 100.0
            # The density of an index without leaf pages is NaN.
            waste, by = (max(0.0, 1 - density / 100 / FULL) if density == density else 0.0), "pgstatindex"
        else:
            waste, by = _btree(size, entries if partial else rows, width), "estimate"
        found.append(Index(name, table, method, size, round(waste, 3), by))
    return found


def _btree(size: int, entries: float, width: float) -> float:
    """Compare the size with that of the entries in full pages."""
    needed = entries * (ENTRY + -(-width // 8) * 8) / (USABLE * FULL) * PAGE + 2 * PAGE
    return max(0.0, 1 - needed / size) if size else 0.0


def _hnsw(size: int, live: float, dimensions: int, m: int) -> float:
    """Compare the size with that of the live elements."""
    element = HNSW_ELEMENT + 4 * max(dimensions, 1) + HNSW_NEIGHBORS + HNSW_LINK * 2 * m
    pages = live / max(1, USABLE // element) + 1
    return max(0.0, 1 - pages * PAGE / size) if size else 0.0


def leftovers(connection: Connection) -> list[str]:
    """List INVALID indexes left by a killed REINDEX (CONCURRENTLY), unless one is running on that table."""
    rows = connection.execute(
        "SELECT x.indexrelid::regclass::text FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
        " WHERE NOT x.indisvalid AND i.relname ~ '_cc(new|old)[0-9]*$' AND pg_has_role(i.relowner, 'USAGE')"
        " AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = x.indrelid) ORDER BY 1"
    ).fetchall()
    return [str(row[0]) for row in rows]


def drop(connection: Connection, name: str) -> None:
    """Drop an index concurrently. `name` is printed by regclass, so it is quoted."""
    connection.execute(f"DROP INDEX CONCURRENTLY {name}".encode())


def rebuild(connection: Connection, name: str) -> None:
    """Rebuild an index concurrently. Raises psycopg.Error if it times out on a lock."""
    for setting, value in (("lock_timeout", f"{WAIT_S}s"), ("statement_timeout", "0")):
        connection.execute("SELECT set_config(%s, %s, false)", (setting, value))
    connection.execute(f"REINDEX INDEX CONCURRENTLY {name}".encode())


def size(connection: Connection, name: str) -> int:
    """Return the size of an index in bytes."""
    row = connection.execute(sql.SQL("SELECT pg_relation_size({}::regclass)").format(sql.Literal(name))).fetchone()
    return int(str(row[0])) if row else 0


def stale(connection: Connection) -> list[str]:
    """List the tables with more than 1 % of their rows changed since the last ANALYZE."""
    rows = connection.execute(
        "SELECT s.relid::regclass::text FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid"
        " WHERE s.schemaname = current_schema() AND pg_has_role(c.relowner, 'USAGE')"
        " AND (s.n_mod_since_analyze > greatest(100, s.n_live_tup / 100)"
        " OR (s.n_live_tup > 0 AND coalesce(s.last_analyze, s.last_autoanalyze) IS NULL)) ORDER BY 1"
    ).fetchall()
    return [str(row[0]) for row in rows]


def analyze(connection: Connection, table: str) -> None:
    """Run ANALYZE on a table. Raises psycopg.Error if it times out on a lock."""
    connection.execute("SELECT set_config('statement_timeout', '0', false)")
    connection.execute(f"ANALYZE {table}".encode())
