"""How much of an index is waste, and building it anew beside the application where that is worth it. Does IO.

B-tree: pgstatindex where the extension pgstattuple is there and may be asked; else an estimate from the planner's
statistics: keys of their average width in pages that are 90 % full (the default fillfactor). Entries that are
deduplicated (PostgreSQL 13) take less than that, so the estimate errs towards leaving an index alone.

HNSW: pgvector's VACUUM unlinks dead elements, but their pages stay in the file, and only later inserts take them again.
So what the file could hold beyond the rows that have a vector is dead: such a graph costs memory, and its repaired
links cost recall, which a new build gives back. Both criteria want a share and a size: rebuilding what is small, or
full, costs more than it gives. Layout of an element:
HnswElementTupleData and HnswNeighborTupleData in pgvector's hnsw.h.

REINDEX (CONCURRENTLY) locks nobody out. One that was killed leaves an INVALID index named ..._ccnew, which costs every
write and serves nobody: the next run drops it.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from provision.database import Connection
from provision.plan.schema import Maintenance

PAGE, USABLE = 8192, 8192 - 24  # bytes; without the header of a page
FULL = 0.9  # B-tree's default fillfactor
ENTRY = 8 + 4  # header of an index entry, and its line pointer
HNSW_ELEMENT = 72 + 8 + 4  # header of an element with its ten heap addresses, of the vector, and its line pointer
HNSW_LINK, HNSW_NEIGHBORS = 6, 4 + 4  # an address in another page; header and line pointer of the list of links
WAIT_S = 600  # for transactions that are older than a phase of the build: waiting for them keeps nobody


@dataclass(frozen=True)
class Index:
    """An index: its bytes, the share of them that is waste, and how that is known."""

    name: str
    table: str
    method: str
    bytes: int
    waste: float
    by: str

    def due(self, maintenance: Maintenance) -> bool:
        """Say whether it is worth a new build."""
        return 100 * self.waste >= maintenance.bloat_percent and self.bytes * self.waste >= maintenance.bloat_mb * 2**20


_INDEXES = """
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
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am a ON a.oid = i.relam
WHERE n.nspname = 'public' AND x.indisvalid AND t.relkind = 'r' AND a.amname IN ('btree', 'hnsw')
    AND pg_has_role(t.relowner, 'USAGE')
ORDER BY 1
"""


def look(connection: Connection) -> list[Index]:
    """Measure every B-tree and HNSW index of schema public that this role owns."""
    exact = connection.execute(
        "SELECT 1 FROM pg_proc WHERE proname = 'pgstatindex' AND proargtypes[0] = 'regclass'::regtype"
        " AND has_function_privilege(oid, 'EXECUTE')"
    ).fetchone()
    found = []
    for row in connection.execute(_INDEXES).fetchall():
        name, table, method, size = str(row[0]), str(row[1]), str(row[2]), int(str(row[3]))
        rows, width, partial, entries = float(str(row[4])), float(str(row[5])), bool(row[6]), float(str(row[7]))
        if method == "hnsw":
            # VACUUM writes how many elements it left; where it has not run, the table's rows with a vector.
            live = min(entries or rows, rows * (1 - float(str(row[10]))))
            waste, by = _hnsw(size, live, int(str(row[8])), int(str(row[9]))), "pages beside rows"
        elif exact:
            answer = connection.execute("SELECT avg_leaf_density FROM pgstatindex(%s::regclass)", (name,)).fetchone()
            density = float(str(answer[0])) if answer else 100.0
            # An index without leaves has no density (NaN).
            waste, by = (max(0.0, 1 - density / 100 / FULL) if density == density else 0.0), "pgstatindex"
        else:
            waste, by = _btree(size, entries if partial else rows, width), "estimate"
        found.append(Index(name, table, method, size, round(waste, 3), by))
    return found


def _btree(size: int, entries: float, width: float) -> float:
    """Compare with the bytes that the entries would take in full pages."""
    needed = entries * (ENTRY + -(-width // 8) * 8) / (USABLE * FULL) * PAGE + 2 * PAGE
    return max(0.0, 1 - needed / size) if size else 0.0


def _hnsw(size: int, live: float, dimensions: int, m: int) -> float:
    """Compare with the pages that the live elements would take."""
    element = HNSW_ELEMENT + 4 * max(dimensions, 1) + HNSW_NEIGHBORS + HNSW_LINK * 2 * m
    pages = live / max(1, USABLE // element) + 1
    return max(0.0, 1 - pages * PAGE / size) if size else 0.0


def leftovers(connection: Connection) -> list[str]:
    """Name what a killed REINDEX (CONCURRENTLY) left, unless one is at work on that table."""
    rows = connection.execute(
        "SELECT x.indexrelid::regclass::text FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid"
        " WHERE NOT x.indisvalid AND i.relname ~ '_cc(new|old)[0-9]*$' AND pg_has_role(i.relowner, 'USAGE')"
        " AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = x.indrelid) ORDER BY 1"
    ).fetchall()
    return [str(row[0]) for row in rows]


def drop(connection: Connection, name: str) -> None:
    """Drop an index beside the application. `name` is what regclass printed, so it is quoted already."""
    connection.execute(f"DROP INDEX CONCURRENTLY {name}".encode())


def rebuild(connection: Connection, name: str) -> None:
    """Build an index anew beside the application. Raises psycopg.Error when it had to give way."""
    for setting, value in (("lock_timeout", f"{WAIT_S}s"), ("statement_timeout", "0")):
        connection.execute("SELECT set_config(%s, %s, false)", (setting, value))
    connection.execute(f"REINDEX INDEX CONCURRENTLY {name}".encode())


def size(connection: Connection, name: str) -> int:
    """Give an index's bytes."""
    row = connection.execute(sql.SQL("SELECT pg_relation_size({}::regclass)").format(sql.Literal(name))).fetchone()
    return int(str(row[0])) if row else 0


def stale(connection: Connection) -> list[str]:
    """Name the tables whose statistics lag behind by more than a hundredth of their rows."""
    rows = connection.execute(
        "SELECT s.relid::regclass::text FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid"
        " WHERE s.schemaname = 'public' AND pg_has_role(c.relowner, 'USAGE')"
        " AND (s.n_mod_since_analyze > greatest(100, s.n_live_tup / 100)"
        " OR (s.n_live_tup > 0 AND coalesce(s.last_analyze, s.last_autoanalyze) IS NULL)) ORDER BY 1"
    ).fetchall()
    return [str(row[0]) for row in rows]


def analyze(connection: Connection, table: str) -> None:
    """Renew a table's statistics, giving way to whoever changes the table."""
    connection.execute("SELECT set_config('statement_timeout', '0', false)")
    connection.execute(f"ANALYZE {table}".encode())
