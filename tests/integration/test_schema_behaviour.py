"""What the schema does with rows: refuses, stamps, deletes, counts. Expected figures are counted by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.clusters import Cluster
from tests.integration.rows import ACTIVITY, AGENT, ONE_OF_EACH, OTHER, SESSION, TOOL, Session, count, rows


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("INSERT INTO agents (name) VALUES ('')", "agents_name_not_empty"),
        ("INSERT INTO agents (name, config) VALUES ('x', '[]')", "agents_config_is_object"),
        ("UPDATE agents SET status = 'deleted'", "agents_status_known"),
        ("UPDATE sessions SET status = 'Closed'", "sessions_status_known"),
        ("UPDATE sessions SET history = '{}'", "sessions_history_is_array"),
        ("UPDATE sessions SET working_memory = 'null'", "sessions_working_memory_is_object"),
        ("UPDATE sessions SET metadata = '1'", "sessions_metadata_is_object"),
        ("UPDATE memories SET memory_type = 'vague'", "memories_type_known"),
        ("UPDATE memories SET importance = 1.1", "memories_importance_in_range"),
        ("UPDATE memories SET importance = 'NaN'", "memories_importance_in_range"),
        ("UPDATE memories SET metadata = '[]'", "memories_metadata_is_object"),
        ("UPDATE activities SET activity_type = ''", "activities_type_not_empty"),
        ("UPDATE activities SET status = 'done'", "activities_status_known"),
        ("UPDATE activities SET details = '[]'", "activities_details_is_object"),
        ("UPDATE activities SET duration_ms = -1", "activities_duration_not_negative"),
        ("UPDATE metrics SET name = ''", "metrics_name_not_empty"),
        ("UPDATE metrics SET labels = '[]'", "metrics_labels_is_object"),
        ("UPDATE evaluations SET name = ''", "evaluations_name_not_empty"),
        ("UPDATE evaluations SET status = 'started'", "evaluations_status_known"),
        ("UPDATE evaluations SET details = '[]'", "evaluations_details_is_object"),
        ("UPDATE evaluations SET duration_ms = -1", "evaluations_duration_not_negative"),
        ("UPDATE feedback SET sentiment = 'angry'", "feedback_sentiment_known"),
        ("UPDATE feedback SET rating = 0", "feedback_rating_in_range"),
        ("UPDATE feedback SET rating = 6", "feedback_rating_in_range"),
        ("UPDATE feedback SET source = ''", "feedback_source_known"),
        ("UPDATE feedback SET status = 'closed'", "feedback_status_known"),
        ("UPDATE feedback SET metadata = '[]'", "feedback_metadata_is_object"),
        ("UPDATE tools SET name = ''", "tools_name_not_empty"),
        ("INSERT INTO tools (name) VALUES ('search')", "tools_name_key"),
        ("UPDATE tools SET parameters = '[]'", "tools_parameters_is_object"),
        ("UPDATE agent_tools SET config = '[]'", "agent_tools_config_is_object"),
        (f"DELETE FROM tools WHERE id = '{TOOL}'", "agent_tools_tool_id_fkey"),
    ],
)
def test_refuses_what_no_row_may_hold(one_of_each: Session, statement: str, constraint: str) -> None:
    with pytest.raises(psycopg.errors.IntegrityError) as refusal, one_of_each.transaction():
        one_of_each.execute(statement.encode())
    assert refusal.value.diag.constraint_name == constraint


def test_every_constraint_on_values_is_tried(one_of_each: Session) -> None:
    tried = {parameters[1] for parameters in test_refuses_what_no_row_may_hold.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    made = {
        str(row[0])
        for row in rows(one_of_each, "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0")
    }
    assert made - tried == set()


def test_accepts_every_state_that_is_documented(schema: Session) -> None:
    schema.execute(ONE_OF_EACH.encode())
    states = {
        ("agents", "status"): "active inactive archived",
        ("sessions", "status"): "active paused closed archived",
        ("memories", "memory_type"): "episodic semantic procedural",
        ("activities", "status"): "started succeeded failed cancelled",
        ("evaluations", "status"): "passed failed error skipped",
        ("feedback", "sentiment"): "positive neutral negative",
        ("feedback", "source"): "user reviewer system",
        ("feedback", "status"): "open resolved dismissed",
    }
    for (table, name), values in states.items():
        for value in values.split():
            schema.execute(f"UPDATE {table} SET {name} = '{value}'".encode())
            (comment,) = rows(
                schema,
                f"""SELECT col_description(attrelid, attnum) FROM pg_attribute
                WHERE attrelid = '{table}'::regclass AND attname = '{name}'""",
            )
            assert value in str(comment[0]), f"{table}.{name} does not explain {value}"


def test_stamps_updated_at_wherever_there_is_one(schema: Session) -> None:
    schema.execute(ONE_OF_EACH.encode())
    tables = [
        str(row[0])
        for row in rows(
            schema,
            """
        SELECT c.relname FROM pg_attribute AS a INNER JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE a.attname = 'updated_at' AND c.relkind = 'r' ORDER BY 1""",
        )
    ]
    assert tables == ["agent_tools", "agents", "feedback", "memories", "sessions", "tools"]
    for table in tables:
        schema.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
        schema.execute(f"UPDATE {table} SET updated_at = '2020-01-01', created_at = '2020-01-01'".encode())
        schema.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())
        with schema.transaction():
            schema.execute(f"UPDATE {table} SET created_at = created_at".encode())
            stamped = rows(schema, f"SELECT updated_at = CURRENT_TIMESTAMP, created_at = '2020-01-01' FROM {table}")
        assert stamped == [(True, True)], table


def test_a_deleted_session_leaves_what_was_learned_and_logged(one_of_each: Session) -> None:
    one_of_each.execute("DELETE FROM sessions")
    for table in ("memories", "activities", "feedback"):
        assert rows(one_of_each, f"SELECT session_id, agent_id::text FROM {table}") == [(None, AGENT)], table


def test_a_deleted_agent_takes_its_own_and_leaves_the_log(one_of_each: Session) -> None:
    one_of_each.execute("DELETE FROM agents")
    for table in ("sessions", "memories", "evaluations", "feedback", "agent_tools"):
        assert count(one_of_each, table) == 0, table
    assert rows(one_of_each, "SELECT id::text, agent_id, session_id FROM activities") == [(ACTIVITY, None, None)]
    assert rows(one_of_each, "SELECT name, value, agent_id FROM metrics") == [("tokens", 7.0, None)]
    assert count(one_of_each, "tools") == 1


def test_feedback_outlives_the_activity_that_it_judges(one_of_each: Session) -> None:
    one_of_each.execute("DELETE FROM activities")
    assert rows(one_of_each, "SELECT agent_id::text, activity_id FROM feedback") == [(AGENT, None)]


def test_a_tool_in_use_cannot_be_deleted_and_an_unused_one_can(one_of_each: Session) -> None:
    with pytest.raises(psycopg.errors.IntegrityError, match="agent_tools"), one_of_each.transaction():
        one_of_each.execute("DELETE FROM tools")
    one_of_each.execute("DELETE FROM agent_tools")
    one_of_each.execute("DELETE FROM tools")
    assert count(one_of_each, "tools") == 0


def test_cleanup_deletes_expired_sessions_and_counts_them(one_of_each: Session) -> None:
    one_of_each.execute(
        f"""INSERT INTO sessions (agent_id, user_id, expires_at) VALUES
        ('{AGENT}', 'gone', CURRENT_TIMESTAMP - interval '1 second'), ('{AGENT}', 'gone', '2020-01-01'),
        ('{AGENT}', 'kept', CURRENT_TIMESTAMP + interval '1 hour'), ('{AGENT}', 'kept', NULL)""".encode()
    )
    assert rows(one_of_each, "SELECT cleanup_expired_sessions(), pg_typeof(cleanup_expired_sessions())::text") == [
        (2, "integer")
    ]
    assert rows(one_of_each, "SELECT user_id FROM sessions WHERE id <> '" + SESSION + "'") == [
        ("kept",),
        ("kept",),
    ]
    assert rows(one_of_each, "SELECT cleanup_expired_sessions()") == [(0,)]


def test_cleanup_skips_a_locked_session(cluster: Cluster, one_of_each: Session) -> None:
    one_of_each.execute("UPDATE sessions SET expires_at = '2020-01-01'")
    with psycopg.connect(cluster.url(one_of_each.info.dbname, "minion")) as holder:
        holder.execute("UPDATE sessions SET expires_at = CURRENT_TIMESTAMP + interval '1 hour'")
        one_of_each.execute("SET lock_timeout = '2s'")
        assert rows(one_of_each, "SELECT cleanup_expired_sessions()") == [(0,)]
        holder.commit()
    assert rows(one_of_each, "SELECT cleanup_expired_sessions()") == [(0,)]
    assert count(one_of_each, "sessions") == 1


def test_agent_stats_counts_each_child_once(schema: Session) -> None:
    schema.execute(
        f"""
        INSERT INTO agents (id, name) VALUES ('{AGENT}', 'busy'), ('{OTHER}', 'idle');
        INSERT INTO sessions (agent_id, status)
            VALUES ('{AGENT}', 'active'), ('{AGENT}', 'closed'), ('{AGENT}', 'active');
        INSERT INTO memories (agent_id, content) SELECT '{AGENT}', 'fact' FROM generate_series(1, 5);
        INSERT INTO activities (agent_id, activity_type, status, created_at) VALUES
            ('{AGENT}', 'x', 'failed', CURRENT_TIMESTAMP - interval '25 hours'),
            ('{AGENT}', 'x', 'failed', CURRENT_TIMESTAMP - interval '23 hours'),
            ('{AGENT}', 'x', 'succeeded', '2021-02-03 04:05:06+00'), (NULL, 'x', 'failed', CURRENT_TIMESTAMP);
        INSERT INTO evaluations (agent_id, name, status, score) VALUES
            ('{AGENT}', 'a', 'passed', 0.9), ('{AGENT}', 'b', 'failed', 0.4), ('{AGENT}', 'c', 'skipped', NULL);
        INSERT INTO feedback (agent_id, rating)
            VALUES ('{AGENT}', 5), ('{AGENT}', 2), ('{AGENT}', NULL), ('{AGENT}', 2);
    """.encode()
    )
    figures = """agent_name, session_count, active_session_count, memory_count, activity_count,
        recent_failure_count, evaluation_count, round(average_score::numeric, 2)::text, feedback_count,
        round(average_rating, 1)::text"""
    assert rows(schema, f"SELECT {figures} FROM agent_stats ORDER BY 1") == [
        ("busy", 3, 2, 5, 3, 1, 3, "0.65", 4, "3.0"),
        ("idle", 0, 0, 0, 0, 0, 0, None, 0, None),
    ]
    (last,) = rows(schema, f"SELECT last_activity_at FROM agent_stats WHERE agent_id = '{AGENT}'")[0]
    assert isinstance(last, datetime)
    assert timedelta(hours=22) < datetime.now(UTC) - last < timedelta(hours=24)


def test_feedback_summary_holds_the_last_seven_days(schema: Session) -> None:
    schema.execute(
        f"""
        INSERT INTO agents (id, name) VALUES ('{AGENT}', 'busy'), ('{OTHER}', 'long ago');
        INSERT INTO feedback (agent_id, sentiment, rating, status, created_at) VALUES
            ('{AGENT}', 'positive', 5, 'open', CURRENT_TIMESTAMP - interval '1 day'),
            ('{AGENT}', 'positive', 4, 'resolved', CURRENT_TIMESTAMP - interval '6 days 23 hours'),
            ('{AGENT}', 'negative', NULL, 'open', CURRENT_TIMESTAMP - interval '2 days'),
            ('{AGENT}', 'negative', 1, 'open', CURRENT_TIMESTAMP - interval '7 days 1 hour'),
            ('{OTHER}', 'neutral', 3, 'open', CURRENT_TIMESTAMP - interval '8 days');
    """.encode()
    )
    assert rows(
        schema,
        """SELECT agent_name, feedback_count, positive_count, neutral_count, negative_count, open_count,
        round(average_rating, 1)::text, (CURRENT_TIMESTAMP - last_feedback_at) BETWEEN '1 day' AND '1 day 1 hour'
        FROM recent_feedback_summary""",
    ) == [("busy", 3, 2, 0, 1, 2, "4.5", True)]
