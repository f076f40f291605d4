"""The retention rules of the contract: which rows they take, and what it costs to find them."""

from __future__ import annotations

from tests.integration.rows import AGENT, Session, count, rows


def test_the_retention_rules_of_the_contract_take_the_old_rows_only(one_of_each: Session) -> None:
    one_of_each.execute(
        f"""
        INSERT INTO activities (agent_id, activity_type, created_at) VALUES
            ('{AGENT}', 'old', CURRENT_TIMESTAMP - interval '91 days'),
            ('{AGENT}', 'new', CURRENT_TIMESTAMP - interval '89 days');
        INSERT INTO metrics (name, value, timestamp) VALUES
            ('old', 1, CURRENT_TIMESTAMP - interval '31 days'), ('new', 1, CURRENT_TIMESTAMP - interval '29 days');
        INSERT INTO sessions (agent_id, user_id, status, updated_at) VALUES
            ('{AGENT}', 'old', 'closed', CURRENT_TIMESTAMP - interval '8 days'),
            ('{AGENT}', 'new', 'closed', CURRENT_TIMESTAMP - interval '6 days'),
            ('{AGENT}', 'open', 'active', CURRENT_TIMESTAMP - interval '8 days');
    """.encode()
    )
    done = [
        one_of_each.execute(statement).rowcount
        for statement in (
            b"DELETE FROM activities WHERE created_at < CURRENT_TIMESTAMP - INTERVAL '90 days'",
            b"DELETE FROM metrics WHERE timestamp < CURRENT_TIMESTAMP - INTERVAL '30 days'",
            b"""UPDATE sessions SET status = 'archived'
            WHERE status = 'closed' AND updated_at < CURRENT_TIMESTAMP - INTERVAL '7 days'""",
        )
    ]
    assert done == [1, 1, 1]
    assert count(one_of_each, "activities", "activity_type = 'old'") == 0
    assert count(one_of_each, "metrics", "name = 'old'") == 0
    assert rows(one_of_each, "SELECT user_id, status FROM sessions WHERE user_id IS NOT NULL ORDER BY 1") == [
        ("new", "closed"),
        ("old", "archived"),
        ("open", "active"),
    ]


# Enough rows for an index to be worth its while, spread over 100 agents and 100 days.
MANY = """
INSERT INTO agents (name) SELECT 'agent ' || i FROM generate_series(1, 100) AS i;
CREATE TEMP TABLE spread AS
SELECT id, day, CURRENT_TIMESTAMP - day * interval '1 day' AS moment
FROM agents CROSS JOIN generate_series(0, 99) AS days (day) ORDER BY day DESC, id;
INSERT INTO activities (agent_id, activity_type, created_at, details)
SELECT id, 'message', moment, jsonb_build_object('text', repeat('x', 200)) FROM spread;
INSERT INTO metrics (agent_id, name, value, timestamp) SELECT id, 'tokens', 1, moment FROM spread;
INSERT INTO sessions (agent_id, status, created_at, updated_at)
SELECT id, CASE WHEN day = 8 THEN 'closed' ELSE 'archived' END, moment, moment FROM spread;
INSERT INTO feedback (agent_id, rating, created_at) SELECT id, 3, moment FROM spread;
"""


def test_the_contracts_statements_find_their_rows_through_an_index(schema: Session) -> None:
    schema.execute(MANY.encode())
    schema.execute("VACUUM ANALYZE")
    (agent,) = rows(schema, "SELECT id FROM agents LIMIT 1")[0]
    wanted = {
        """DELETE FROM activities
        WHERE created_at < CURRENT_TIMESTAMP - INTERVAL '90 days'""": "activities_created_at_idx",
        "DELETE FROM metrics WHERE timestamp < CURRENT_TIMESTAMP - INTERVAL '95 days'": "metrics_timestamp_idx",
        """UPDATE sessions SET status = 'archived'
        WHERE status = 'closed' AND updated_at < CURRENT_TIMESTAMP - INTERVAL '7 days'""": "sessions_closed_idx",
        "SELECT * FROM recent_feedback_summary": "feedback_created_at_idx",
        f"SELECT * FROM agent_stats WHERE agent_id = '{agent}'": "activities_agent_id_created_at_idx",
    }
    for statement, index in wanted.items():
        steps = "\n".join(str(row[0]) for row in rows(schema, f"EXPLAIN {statement}"))
        assert index in steps, f"{statement}\n{steps}"
    steps = "\n".join(
        str(row[0]) for row in rows(schema, f"EXPLAIN SELECT * FROM agent_stats WHERE agent_id = '{agent}'")
    )
    assert "Index Only Scan using activities_agent_id_created_at_idx" in steps
    for table in ("activities", "sessions", "feedback"):
        assert f"Seq Scan on {table}" not in steps, steps


def test_updates_of_a_session_stay_on_its_page(one_of_each: Session) -> None:
    """Heap-only updates: no index, of any kind, may hold a column that changes with every message."""
    with one_of_each.transaction():
        for step in range(3):
            one_of_each.execute(
                "UPDATE sessions SET history = history || '[\"x\"]', working_memory = %s", (f'{{"a": {step}}}',)
            )
        updates = "pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c)"
        assert rows(one_of_each, f"SELECT {updates} FROM (SELECT 'sessions'::regclass::oid) AS t (c)") == [(3, 3)]
