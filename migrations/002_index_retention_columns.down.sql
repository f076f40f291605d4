-- Drops the indexes of 002: retention and recent_feedback_summary read their tables from end to end again.
--
-- Why      To take 002 back.
-- Locks    ACCESS EXCLUSIVE on the four tables for some milliseconds, after waiting for whoever is using them:
--          set a lock_timeout on a busy database, for others queue behind this wait.
-- Undo     002_index_retention_columns.up.sql
BEGIN;

DROP INDEX activities_created_at_idx;
DROP INDEX metrics_timestamp_idx;
DROP INDEX sessions_closed_idx;
DROP INDEX feedback_created_at_idx;

COMMIT;
