"""Measure the contract's retention statements and views before and after a migration.

    python -m benchmarks.schema [--rows N] [--apply FILE ...]

Does IO: creates a cluster with the contract's recommended settings, applies 001, fills the tables (by default 1,000,000
rows each in activities, metrics and feedback, a quarter of that in sessions), times each statement, applies the files
(by default 002) and times each statement again. Writes are rolled back. Asserts nothing. The data models a host with
daily retention jobs: one day's rows are due.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import psycopg

from tests.clusters import Cluster

MIGRATIONS = Path(__file__).parent.parent / "migrations"
SETTINGS = {
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
    "max_wal_size": "8GB",  # no checkpoint during a measurement
    "checkpoint_timeout": "1h",
    "autovacuum": "off",  # the tables are vacuumed before the first measurement
}
AGENT = "(SELECT id FROM agents ORDER BY name LIMIT 1)"

# Rows are in time order, as in production; each of 200 agents owns 0.5 % of them.
FILL = """
SELECT setseed(0.42);
INSERT INTO agents (name) SELECT 'agent ' || lpad(i::text, 3, '0') FROM generate_series(1, 200) AS i;
CREATE TEMP TABLE a AS SELECT id, row_number() OVER (ORDER BY name) AS n FROM agents;
CREATE TEMP TABLE s AS
SELECT uuid_generate_v4() AS id, i, i % 200 + 1 AS n FROM generate_series(1, {rows} / 4) AS i;
ANALYZE a;
ANALYZE s;
INSERT INTO sessions (id, agent_id, status, history, expires_at, created_at, updated_at)
SELECT
    s.id, a.id,
    CASE WHEN age > interval '8 days' THEN 'archived' WHEN random() < 0.9 THEN 'closed' ELSE 'active' END,
    jsonb_build_array(jsonb_build_object('role', 'user', 'content', repeat(md5(s.i::text), 8))),
    CURRENT_TIMESTAMP - age + interval '365 days', CURRENT_TIMESTAMP - age, CURRENT_TIMESTAMP - age
FROM s INNER JOIN a ON a.n = s.n
CROSS JOIN LATERAL (SELECT interval '366 days' * (1 - 4.0 * s.i / {rows}) AS age) AS t
ORDER BY s.i;
INSERT INTO activities (agent_id, session_id, activity_type, status, details, duration_ms, created_at)
SELECT
    a.id, s.id, 'tool_call', CASE WHEN random() < 0.02 THEN 'failed' ELSE 'succeeded' END,
    jsonb_build_object('tool', 'search', 'input', repeat(md5(g.i::text), 6)), g.i % 3000,
    CURRENT_TIMESTAMP - interval '91 days' * (1 - 1.0 * g.i / {rows})
FROM generate_series(1, {rows}) AS g (i) INNER JOIN s ON s.i = (g.i - 1) / 4 + 1 INNER JOIN a ON a.n = s.n
ORDER BY g.i;
INSERT INTO metrics (agent_id, name, value, unit, labels, timestamp)
SELECT
    a.id, 'metric ' || g.i % 20, random(), 'ms', '{{"host": "db1"}}',
    CURRENT_TIMESTAMP - interval '31 days' * (1 - 1.0 * g.i / {rows})
FROM generate_series(1, {rows}) AS g (i) INNER JOIN a ON a.n = g.i % 200 + 1 ORDER BY g.i;
INSERT INTO feedback (agent_id, sentiment, rating, comment, created_at)
SELECT
    a.id, (ARRAY['positive', 'neutral', 'negative'])[1 + g.i % 3], 1 + g.i % 5, repeat(md5(g.i::text), 4),
    CURRENT_TIMESTAMP - interval '365 days' * (1 - 1.0 * g.i / {rows})
FROM generate_series(1, {rows}) AS g (i) INNER JOIN a ON a.n = g.i % 200 + 1 ORDER BY g.i;
INSERT INTO memories (agent_id, content) SELECT id, 'a fact' FROM a CROSS JOIN generate_series(1, 50);
"""

STATEMENTS = {
    "retention: activities older than 90 days": """
        DELETE FROM activities WHERE created_at < CURRENT_TIMESTAMP - INTERVAL '90 days'""",
    "retention: metrics older than 30 days": """
        DELETE FROM metrics WHERE timestamp < CURRENT_TIMESTAMP - INTERVAL '30 days'""",
    "retention: archive closed sessions": """
        UPDATE sessions SET status = 'archived'
        WHERE status = 'closed' AND updated_at < CURRENT_TIMESTAMP - INTERVAL '7 days'""",
    "cleanup_expired_sessions()": "SELECT cleanup_expired_sessions()",
    "agent_stats, all agents": "SELECT * FROM agent_stats",
    "agent_stats, one agent": f"SELECT * FROM agent_stats WHERE agent_id = {AGENT}",
    "recent_feedback_summary": "SELECT * FROM recent_feedback_summary",
    "an agent's last 50 activities": f"""
        SELECT * FROM activities WHERE agent_id = {AGENT} ORDER BY created_at DESC LIMIT 50""",
    "the last 100 activities of all agents": """
        SELECT * FROM activities ORDER BY created_at DESC LIMIT 100""",
    "count the activities older than 90 days": """
        SELECT count(*) FROM activities WHERE created_at < CURRENT_TIMESTAMP - INTERVAL '90 days'""",
    "a metric's last hour": """
        SELECT * FROM metrics WHERE name = 'metric 7' AND timestamp > CURRENT_TIMESTAMP - INTERVAL '1 hour'""",
    "insert 10,000 activities": f"""
        INSERT INTO activities (agent_id, activity_type)
        SELECT {AGENT}, 'tool_call' FROM generate_series(1, 10000)""",
    "insert 10,000 metrics": f"""
        INSERT INTO metrics (agent_id, name, value)
        SELECT {AGENT}, 'metric 1', 1 FROM generate_series(1, 10000)""",
    "update 2,000 sessions": """
        UPDATE sessions SET working_memory = '{"step": 2}' WHERE id IN (SELECT id FROM touched)""",
}
REPEATS = 7


def milliseconds(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> float:
    """Return the fastest of several runs in ms, each rolled back."""
    best = float("inf")
    for _ in range(REPEATS):
        with connection.transaction(force_rollback=True):
            started = time.perf_counter()
            connection.execute(statement.encode())
            best = min(best, (time.perf_counter() - started) * 1000)
    return best


def measure(url: str, prepare: bool, only: tuple[str, ...] = ()) -> dict[str, float]:
    """Time every statement, or `only` these, on a new connection."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        if prepare:
            connection.execute("CREATE TABLE touched AS SELECT id FROM sessions TABLESAMPLE system (5) LIMIT 2000")
            connection.execute("ANALYZE touched")
        chosen = {name: STATEMENTS[name] for name in only or STATEMENTS}
        return {name: milliseconds(connection, statement) for name, statement in chosen.items()}


def main() -> None:
    """Fill, measure, migrate, measure again, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--apply", type=Path, nargs="*", default=sorted(MIGRATIONS.glob("002_*.up.sql")))
    options = parser.parse_args()
    cluster = Cluster.create(SETTINGS)
    try:
        cluster.psql("CREATE ROLE minion LOGIN; CREATE DATABASE minion OWNER minion")
        cluster.psql('CREATE EXTENSION vector; CREATE EXTENSION "uuid-ossp"', "minion")
        cluster.psql(next(MIGRATIONS.glob("001_*.up.sql")).read_text(), "minion", "minion")
        started = time.perf_counter()
        cluster.psql(FILL.format(rows=options.rows), "minion", "minion")
        cluster.psql("VACUUM ANALYZE; CHECKPOINT", "minion")
        print(f"{options.rows:,} rows filled in {time.perf_counter() - started:.0f} s")
        url = cluster.url("minion", "minion")
        before = measure(url, prepare=True)
        started = time.perf_counter()
        for path in options.apply:
            cluster.psql(path.read_text(), "minion", "minion")
        print(f"{', '.join(path.name for path in options.apply)}: {time.perf_counter() - started:.1f} s")
        cluster.psql("VACUUM ANALYZE", "minion")
        after = measure(url, prepare=False)
        print(f"{'':42}{'before ms':>11}{'after ms':>11}{'ratio':>8}")
        for name, old in before.items():
            print(f"{name:42}{old:11.1f}{after[name]:11.1f}{old / after[name]:8.2f}")
        print(cluster.psql(SIZES, "minion"))
    finally:
        cluster.remove()


SIZES = """
SELECT format('%-42s %8s', indexrelid::regclass, pg_size_pretty(pg_relation_size(indexrelid)))
FROM pg_index WHERE indrelid::regclass::text IN ('activities', 'metrics', 'sessions', 'feedback')
UNION ALL
SELECT format('%-42s %8s', relname, pg_size_pretty(pg_table_size(oid)))
FROM pg_class WHERE relname IN ('activities', 'metrics', 'sessions', 'feedback')
ORDER BY 1
"""

if __name__ == "__main__":
    main()
