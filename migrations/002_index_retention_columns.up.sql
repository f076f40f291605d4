-- Indexes by time for the retention rules, the observability tables and recent_feedback_summary.
--
-- Why      The retention rules run every day to find the one day that is due among 30 or 90, and the summary
--          looks at one week of all feedback. Without these indexes they read a table, or a larger index, whole.
-- Locks    SHARE on the four tables from the first statement to the COMMIT: they can be read, not written. About
--          2 s for the rows below, so some 20 s for 10 million. All locks are taken before any work is done; set a
--          lock_timeout on a busy database, for writers queue behind the wait.
-- Undo     002_index_retention_columns.down.sql
-- Large    Not CONCURRENTLY: that takes a file for each index, each can fail half-way and leave an INVALID index,
--          and on a fresh database, where this file runs right after 001, it gains nothing. Whoever has many
--          millions of rows and cannot stop writing for that long runs the four statements by hand with CREATE
--          INDEX CONCURRENTLY and the same names, then `provision migrate force 2` (or `migrate ... force 2`).
--
-- Measured on 1,000,000 rows each in activities, metrics and feedback and 250,000 sessions, with the settings that
-- the contract recommends, PostgreSQL 15, 2 busy cores, best of three times seven runs (make bench-schema):
--                                                         before      after
--        DELETE metrics older than 30 days (32,000)       182 ms      19 ms
--        UPDATE closed sessions to archived (600)         101 ms      18 ms
--        DELETE activities older than 90 days (11,000)     64 ms      66 ms   of it to find them: 29 and 18 ms
--        recent_feedback_summary                          217 ms      11 ms
--        agent_stats, all 200 agents                      514 ms     360 ms
--        agent_stats, one agent                            16 ms      11 ms
--        the last 100 activities of all agents            376 ms     0.3 ms
--        a metric's last hour                             136 ms     0.3 ms
--        insert 10,000 activities; 10,000 metrics    no difference above the noise
--    22 MB each, and 0.1 MB for the closed sessions.
--    Activities older than 90 days were found by reading the index of (agent_id, created_at) to its end, 70 MB;
--    most of that DELETE is the look for feedback about each row. What it gains is the size of what is read.
--
-- Why not BRIN, 1,000 times smaller: retention frees the oldest pages, new rows fill them, and a range of pages
--    that once held an old row is never narrowed again. Deleting one day of 31 (1,000,000 rows, day after day):
--        B-tree 12 to 38 ms on every day; BRIN 24 ms on day 1, 91 ms on day 10, 175 to 459 ms from day 29 on, when
--        it rechecks all rows (24 ms again after REINDEX).
-- Why sessions are indexed by created_at, which the rule does not ask for: an index that holds updated_at, even a
--    partial one, ends heap-only updates of all sessions (98 % to none, see 001). The partial index finds the
--    closed ones, which are at most a week's, and updated_at is read from their rows.
BEGIN;

LOCK TABLE activities, metrics, sessions, feedback IN SHARE MODE;

CREATE INDEX activities_created_at_idx ON activities (created_at);
CREATE INDEX metrics_timestamp_idx ON metrics (timestamp);
CREATE INDEX sessions_closed_idx ON sessions (created_at) WHERE status = 'closed';
CREATE INDEX feedback_created_at_idx ON feedback (created_at);

COMMIT;
