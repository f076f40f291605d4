"""Recall of the vector indexes before and after an upgrade: neighbours by index against an exact search. Does IO.

For each HNSW or IVFFlat index, some of its table's own vectors are searched twice, by index and exactly. An index that
the planner does not use, or that finds fewer neighbours than before, is a problem. Only operators of the extension
itself are called: another one could be a user's function, which would run with the rights of this session.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql

from provision.database import Connection, ask
from provision.host.upgrade.sessions import session_of
from provision.plan.schema import Plan

PROBES, NEIGHBOURS = 10, 10
EXACT_ROWS = 2_000_000
"""Larger tables are searched by index alone: an exact search of each probe would take minutes."""
TOLERANCE, ERRORS = 0.05, 3.0
"""Recall may differ so much: an approximate index depends on random levels, and few probes are searched. The larger of
a share of the neighbours, and of a number of standard errors of the difference (binomial)."""
INDEXES = """
SELECT n.nspname, t.relname, a.attname, i.relname, format('OPERATOR(%s.%s)', o.oprnamespace::regnamespace, o.oprname),
  greatest(t.reltuples, 0)::bigint
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am m ON m.oid = i.relam
JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
JOIN pg_opclass c ON c.oid = x.indclass[0]
JOIN pg_amop p ON p.amopfamily = c.opcfamily AND p.amoppurpose = 'o' JOIN pg_operator o ON o.oid = p.amopopr
WHERE m.amname IN ('hnsw', 'ivfflat') AND x.indisvalid AND x.indpred IS NULL AND t.relkind = 'r' AND EXISTS (
  SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
  WHERE d.classid = 'pg_opclass'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass
    AND d.deptype = 'e' AND e.extname = 'vector')
ORDER BY 1, 2, 4
"""


@dataclass(frozen=True)
class Recall:
    """One index: its probes, whether all used it, and the share of exact neighbours found (-1: not compared)."""

    index: str
    probes: int
    used: bool
    recall: float


def measure(plan: Plan, database: str) -> list[Recall]:
    """Search with every vector index of a database, read-only. Raises DatabaseError."""
    with session_of(plan, database) as session, session.transaction(force_rollback=True):
        session.execute("SET TRANSACTION READ ONLY")
        rows = ask(session, INDEXES)
        return [_index(session, *map(str, row[:5]), rows=int(str(row[5]))) for row in rows]


def _index(
    session: Connection, schema: str, table: str, column: str, index: str, operator: str, *, rows: int
) -> Recall:
    place, name = sql.Identifier(schema, table), sql.Identifier(column)
    sample = sql.SQL("SELECT {0}::text FROM {1} WHERE {0} IS NOT NULL ORDER BY ctid LIMIT {2}").format(
        name, place, sql.Literal(PROBES)
    )
    probes = [str(row[0]) for row in session.execute(sample).fetchall()]
    search = sql.SQL("SELECT ctid::text FROM {0} ORDER BY {1} {2} %s LIMIT {3}").format(
        place, name, sql.SQL(operator), sql.Literal(NEIGHBOURS)
    )
    found, expected, used = 0, 0, True
    for probe in probes:
        session.execute("SET LOCAL enable_seqscan = off")
        session.execute("SET LOCAL enable_indexscan = on")
        lines = session.execute(sql.SQL("EXPLAIN ") + search, (probe,)).fetchall()
        used = used and any(index in str(line[0]) for line in lines)
        near = {row[0] for row in session.execute(search, (probe,)).fetchall()}
        if rows > EXACT_ROWS:
            continue
        session.execute("SET LOCAL enable_seqscan = on")
        session.execute("SET LOCAL enable_indexscan = off")
        exact = {row[0] for row in session.execute(search, (probe,)).fetchall()}
        found, expected = found + len(near & exact), expected + len(exact)
    return Recall(f"{schema}.{index}", len(probes), used, round(found / expected, 3) if expected else -1.0)


def differences(before: list[dict[str, Any]], after: list[Recall]) -> list[str]:
    """Return each index that is gone, is not used, or finds fewer neighbours than before."""
    now = {each.index: each for each in after}
    found = []
    for row in before:
        name, seen = str(row["index"]), now.get(str(row["index"]))
        if seen is None:
            found.append(f"{name} is missing")
        elif seen.probes and row["used"] and not seen.used:
            found.append(f"{name} is not used by a search")
        elif seen.recall + _tolerance(float(row["recall"]), int(row["probes"])) < float(row["recall"]):
            found.append(f"{name} finds {seen.recall:.0%} of the nearest neighbours, {float(row['recall']):.0%} before")
    return found


def _tolerance(recall: float, probes: int) -> float:
    if not 0 <= recall <= 1 or not probes:
        return TOLERANCE
    return max(TOLERANCE, ERRORS * math.sqrt(2 * recall * (1 - recall) / (probes * NEIGHBOURS)))


def as_facts(found: list[Recall]) -> list[dict[str, Any]]:
    """Return plain values for a journal."""
    return [asdict(each) for each in found]
