"""Search among the memories of one agent: the plan that the server chooses, its recall and its rate. Does IO.

The settings are those of the application's role: `hnsw.ef_search`, and `hnsw.iterative_scan` where pgvector has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from provision import database
from provision.controller.bench import place
from provision.controller.bench.pgbench import Pgbench, Rate
from provision.tuning import vector

QUERIES, NEIGHBOURS = 30, 10
SCRIPT = """\\set q random(1, {queries})
\\set a random(1, {agents})
SELECT id FROM memories WHERE agent_id = md5('agent' || :a)::uuid
ORDER BY embedding <=> (SELECT embedding FROM queries WHERE id = :q) LIMIT 10;
"""
SEARCH = (
    "SELECT id FROM memories WHERE agent_id = md5('agent' || %s)::uuid"
    f" ORDER BY embedding <=> (SELECT embedding FROM queries WHERE id = %s) LIMIT {NEIGHBOURS}"
)
EXACT = {"enable_indexscan": "off"}  # a bitmap scan may still find the agent's rows


def share(connection: database.Connection, agents: int) -> None:
    """Give every memory to one of so many agents, evenly; the caller builds the vector index afterwards."""
    connection.execute(
        "INSERT INTO agents (id, name) SELECT md5('agent' || i)::uuid, 'agent ' || i"
        f" FROM generate_series(1, {agents}) i ON CONFLICT DO NOTHING".encode()
    )
    connection.execute("DROP INDEX IF EXISTS memories_embedding_idx")
    connection.execute(
        "UPDATE memories m SET agent_id = md5('agent' || 1 + o.number %% %s)::uuid FROM"
        " (SELECT id, row_number() OVER (ORDER BY id) AS number FROM memories) o WHERE o.id = m.id",
        (agents,),
    )
    connection.execute("VACUUM FULL ANALYZE memories")


def settings(pgvector: str) -> dict[str, str]:
    """Return the search settings of the application's role."""
    return {setting.name: setting.text for setting in vector.role_settings(pgvector)}


def plan(connection: database.Connection, given: Mapping[str, str]) -> str:
    """Return how the server searches: its scan of memories."""
    with connection.transaction(force_rollback=True):
        _apply(connection, given)
        rows = connection.execute(f"EXPLAIN {SEARCH}".encode(), (1, 1)).fetchall()
    scans = [str(row[0]).strip(" ->") for row in rows if "Scan" in str(row[0]) and "queries" not in str(row[0])]
    return re.sub(r" +\(cost.*", "", scans[-1]) if scans else ""


def recall(connection: database.Connection, agents: int, given: Mapping[str, str]) -> float:
    """Return recall at 10 against exact searches; an agent with fewer memories has fewer neighbours."""
    hits = whole = 0
    for number in range(1, QUERIES + 1):
        answers = []
        for chosen in (EXACT, given):
            with connection.transaction(force_rollback=True):
                _apply(connection, chosen)
                answers.append(set(connection.execute(SEARCH.encode(), (1 + number % agents, number)).fetchall()))
        hits += len(answers[0] & answers[1])
        whole += len(answers[0])
    return hits / whole


def rate(pgbench: Pgbench, seconds: float, agents: int, given: Mapping[str, str]) -> Rate:
    """Return the rate of searches of random agents, by eight clients."""
    return pgbench.measure(seconds, 8, scripts={SCRIPT.format(queries=place.QUERIES, agents=agents): 1}, **given)


def _apply(connection: database.Connection, given: Mapping[str, str]) -> None:
    for name, value in given.items():
        connection.execute("SELECT set_config(%s, %s, true)", (name, value))
