"""What Citus costs: key look-ups and vector searches at the node that holds the tenant, at the coordinator, elsewhere.

Prints ratios with intervals and asserts no time: 8 rounds in which every route is measured in turn.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import psycopg

from provision.controller.bench.intervals import ratio
from tests.fleet.hosts import Fleet

ROUNDS, SECONDS, VECTORS, DIMENSIONS = 8, 2.0, 2000, 1536
NAME = "cost"
FILL = """
INSERT INTO memories (agent_id, content, embedding)
SELECT (SELECT id FROM agents), 'x', ARRAY(SELECT random() + i * 0 FROM generate_series(1, {dimensions}))::vector
FROM generate_series(1, {vectors}) i
"""


def rate(session: psycopg.Connection[tuple[object, ...]], query: str, argument: Callable[[], object]) -> float:
    """Return statements per second of one client."""
    until, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        session.execute(query.encode(), (argument(),)).fetchall()
        number += 1
    return number / SECONDS


def test_cost_of_a_route(fleet: Fleet) -> None:
    password = fleet.tenant(NAME)
    group = fleet.places()[NAME]
    other = next(number for number in (1, 2) if number != group)
    routes = {"direct": fleet.primary(group), "coordinator": fleet.primary(0), "another worker": fleet.primary(other)}
    sessions = {
        route: psycopg.connect(fleet.url(NAME, password, host, port=5432), autocommit=True)
        for route, host in routes.items()
    }
    try:
        direct = sessions["direct"]
        direct.execute("INSERT INTO agents (name) VALUES ('bench')")
        direct.execute(FILL.format(dimensions=DIMENSIONS, vectors=VECTORS).encode())
        keys = [row[0] for row in direct.execute("SELECT id FROM memories").fetchall()]
        vectors = [str(row[0]) for row in direct.execute("SELECT embedding FROM memories LIMIT 50").fetchall()]
        work: dict[str, tuple[str, Callable[[], object]]] = {
            "key look-up": ("SELECT content FROM memories WHERE id = %s", lambda: random.choice(keys)),
            "vector search": (
                "SELECT id FROM memories ORDER BY embedding <=> %s::vector LIMIT 10", lambda: random.choice(vectors)
            ),
        }  # fmt: skip
        for what, (query, argument) in work.items():
            rates: dict[str, list[float]] = {route: [] for route in sessions}
            for _ in range(ROUNDS):
                for route in random.sample(list(sessions), len(sessions)):
                    rates[route].append(rate(sessions[route], query, argument))
            median = sorted(rates["direct"])[ROUNDS // 2]
            print(f"{what}: direct {median:.0f} per second (median)")
            for route in ("coordinator", "another worker"):
                print(f"{what}: {route} / direct {ratio(rates[route], rates['direct']).text}")
        explained = b"EXPLAIN SELECT id FROM memories ORDER BY embedding <=> %s::vector LIMIT 10"
        lines = [str(row[0]) for row in sessions["coordinator"].execute(explained, (vectors[0],)).fetchall()]
        assert any("Task Count: 1" in line for line in lines), lines
        assert any("memories_embedding_idx" in line for line in lines), lines
    finally:
        for session in sessions.values():
            session.close()
        fleet.run(f"provision tenant drop {NAME} --yes-destroy {NAME} --without-export")
