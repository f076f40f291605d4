-- Takes back the first schema: drops its tables with all their data, its views and its functions.
--
-- Why      To leave a database that holds nothing of the framework. The extensions stay: they are the superuser's.
-- Locks    ACCESS EXCLUSIVE on all nine tables until the end, about 0.1 s; it waits for whoever is using them.
-- Undo     None: the data is gone. Back it up first; 001_initial_schema.up.sql makes the empty schema again.
BEGIN;

DROP VIEW recent_feedback_summary, agent_stats;
DROP FUNCTION cleanup_expired_sessions();
DROP TABLE agent_tools, tools, feedback, evaluations, metrics, activities, memories, sessions, agents;
DROP FUNCTION set_updated_at();

COMMIT;
