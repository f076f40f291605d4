"""One row of everything, and the shortest way to ask for rows."""

from __future__ import annotations

import psycopg

Session = psycopg.Connection[tuple[object, ...]]

AGENT, OTHER = "00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"
SESSION = "00000000-0000-0000-0000-000000000051"
ACTIVITY = "00000000-0000-0000-0000-0000000000ac"
TOOL = "00000000-0000-0000-0000-000000000070"

# One row in every table, all of it about one agent.
ONE_OF_EACH = f"""
INSERT INTO agents (id, name) VALUES ('{AGENT}', 'one');
INSERT INTO sessions (id, agent_id) VALUES ('{SESSION}', '{AGENT}');
INSERT INTO memories (agent_id, session_id, content) VALUES ('{AGENT}', '{SESSION}', 'a fact');
INSERT INTO activities (id, agent_id, session_id, activity_type)
    VALUES ('{ACTIVITY}', '{AGENT}', '{SESSION}', 'message');
INSERT INTO metrics (agent_id, name, value) VALUES ('{AGENT}', 'tokens', 7);
INSERT INTO evaluations (agent_id, name, status) VALUES ('{AGENT}', 'greeting', 'passed');
INSERT INTO feedback (agent_id, session_id, activity_id) VALUES ('{AGENT}', '{SESSION}', '{ACTIVITY}');
INSERT INTO tools (id, name) VALUES ('{TOOL}', 'search');
INSERT INTO agent_tools (agent_id, tool_id) VALUES ('{AGENT}', '{TOOL}');
"""


def rows(connection: Session, sql: str) -> list[tuple[object, ...]]:
    return connection.execute(sql.encode()).fetchall()


def count(connection: Session, table: str, condition: str = "true") -> int:
    (row,) = rows(connection, f"SELECT count(*) FROM {table} WHERE {condition}")
    return int(str(row[0]))
