"""Whether vector searches use the HNSW index at the documented values of ef_search. Reads plans, runs no search.

Does IO. The planner compares the index's random reads with a sequential scan, and a larger ef_search raises the cost
of the index: at random_page_cost 4 it switched to a scan at ef_search 100, with 9 instead of 1,800 searches a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from provision.database import Connection

DOCUMENTED = (40, 100, 200, 400)  # values that keep the index, according to docs/tuning.md
FIX = "a small table is cheaper to scan; on a large one lower random_page_cost (1.1 on flash) or hnsw.ef_search"


@dataclass(frozen=True)
class Lost:
    """A value of ef_search at which the planner does not use the index, and the plan that it chooses."""

    ef_search: int
    plan: str
    fix: str = FIX


def lost(connection: Connection, table: str, column: str, limit: int = 10) -> tuple[Lost, ...]:
    """Return the values of hnsw.ef_search at which `ORDER BY column <=> vector LIMIT limit` does not use the index.

    Searches for a vector of the table itself; returns nothing for an empty table.
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
            if not any("Order By:" in line for line in plan):  # only an index scan returns ordered rows
                found.append(Lost(ef_search, [line.strip(" ->") for line in plan if "Scan" in line][-1]))
    return tuple(found)
