"""Does a vector search use its HNSW index over the whole range of ef_search? Reads plans only, runs no search.

Does IO. The planner weighs the index's random reads against a sequential scan, and a larger ef_search makes the index
dearer: at random_page_cost 4 it was left at ef_search 100, for 9 searches a second instead of 1,800.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from provision.database import Connection

DOCUMENTED = (40, 100, 200, 400)  # what docs/tuning.md says keeps the index
CURE = "a small table is cheaper to scan; on a large one lower random_page_cost (1.1 on flash) or hnsw.ef_search"


@dataclass(frozen=True)
class Lost:
    """An ef_search at which the planner leaves the index, and what it would do instead."""

    ef_search: int
    plan: str
    fix: str = CURE


def lost(connection: Connection, table: str, column: str, limit: int = 10) -> tuple[Lost, ...]:
    """Return the values of hnsw.ef_search at which `ORDER BY column <=> vector LIMIT limit` leaves the index.

    Uses a vector of the table itself; an empty table has nothing to lose and returns none.
    """
    query = sql.SQL("EXPLAIN SELECT {c} FROM {t} ORDER BY {c} <=> (SELECT {c} FROM {t} LIMIT 1) LIMIT {n}").format(
        c=sql.Identifier(column), t=sql.Identifier(table), n=sql.Literal(limit)
    )
    found = []
    with connection.transaction(force_rollback=True):
        some = connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table))).fetchone()
        for ef_search in DOCUMENTED if some else ():
            connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(ef_search),))
            plan = [str(row[0]) for row in connection.execute(query).fetchall()]
            if not any("Order By:" in line for line in plan):  # only an index scan orders by itself
                found.append(Lost(ef_search, [line.strip(" ->") for line in plan if "Scan" in line][-1]))
    return tuple(found)
