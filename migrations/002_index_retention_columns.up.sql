-- (measuring)
BEGIN;

LOCK TABLE activities, metrics, sessions, feedback IN SHARE MODE;

CREATE INDEX activities_created_at_idx ON activities (created_at);
CREATE INDEX metrics_timestamp_idx ON metrics (timestamp);
CREATE INDEX sessions_closed_idx ON sessions (created_at) WHERE status = 'closed';
CREATE INDEX feedback_created_at_idx ON feedback (created_at);

COMMIT;
