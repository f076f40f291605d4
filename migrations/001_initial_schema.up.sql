-- The first schema of the Minion Agent Framework: nine tables, two views, the clean-up of expired sessions.
--
-- Why      The framework stores here what its agents are, say, remember and do.
-- Needs    PostgreSQL 14 or newer; the extensions vector (0.5.0 or newer) and uuid-ossp, made by a superuser.
--          Whoever runs this file owns everything in it; it goes into the first schema of the search path.
-- Locks    New objects only, so nobody waits. It takes about 0.1 s.
-- Undo     001_initial_schema.down.sql: drops all of it, with the data.
-- Whole    BEGIN and COMMIT make a plain `psql -f` leave nothing behind when a statement fails.
--
-- Decisions that cost a rewrite of the table to change, with what was measured (PostgreSQL 15, pgvector 0.8.0,
-- 2 cores, all in memory):
--
-- 1. memories.embedding is STORAGE PLAIN and toast_tuple_target is 8160: the vector (6,148 bytes) and a content of
--    up to some 1,900 bytes are in the row, a longer content is moved out. 20,000 memories:
--                                                    EXTERNAL    EXTERNAL         PLAIN   PLAIN, target
--                                                   (default)  fillfactor 80                  8160
--        ten nearest of an agent with 1 %             0.90 ms      1.1 ms       0.49 ms     0.36 ms
--        the same with 5 %, without HNSW              6.1 ms       4.5 ms       1.4 ms      2.0 ms
--        ten nearest of all, without HNSW              93 ms       104 ms        55 ms       43 ms
--        contents of an agent with 1 %                0.97 ms      0.66 ms      1.6 ms      0.56 ms
--        group all rows by another column             9.1 ms       9.6 ms        41 ms       31 ms
--        update another column: time, WAL       1.7 ms, 1.0 kB  0.25 ms, 0.2 kB  1.4 ms, 6.6 kB  1.3 ms, 7.2 kB
--        table and indexes                            345 MB       349 MB       340 MB      329 MB
--    Memories are written once and searched often, so search decides. The price is paid by scans of other columns
--    and by updates: each writes the whole row and a new entry of the HNSW index. Keep counters elsewhere.
--
-- 2. sessions has fillfactor 80: 20,000 sessions of 1 kB, updated six times each, autovacuum on:
--        fillfactor             100     90     80     70     50
--        heap-only updates      88 %   94 %   98 %  99.6 % 99.8 %
--        table at the end, MB   28.4   29.7   30.5   32.8   41.6
--    No index may hold updated_at, not even a partial or a BRIN one: heap-only updates fall from 98 % to none and
--    WAL grows by half. An application that moves expires_at with every message pays that price for its index.
--
-- 3. metrics counts its keys up: 1,000,000 points took 2.8 s and a key index of 21 MB, with random uuids 11.5 s
--    and 38 MB, and nobody refers to a point.
--
-- 4. activities, metrics and sessions are vacuumed after 5 % of change rather than 20 %: counts in the index
--    alone, as in agent_stats, need a recent visibility map, and the daily retention frees 1 to 3 %.
BEGIN;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(format('"%s"', wanted.name), ', ' ORDER BY wanted.name)
    INTO missing
    FROM (VALUES ('uuid-ossp'), ('vector')) AS wanted (name)
    WHERE NOT EXISTS (SELECT FROM pg_extension AS e WHERE e.extname = wanted.name);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'extension missing in database "%": %', current_database(), missing
            USING ERRCODE = 'undefined_object',
            DETAIL = 'Migrations never make extensions: only a superuser can, once for each database.',
            HINT = format(
                'As a superuser: psql -d %s -c ''CREATE EXTENSION "vector"'' -c ''CREATE EXTENSION "uuid-ossp"''',
                current_database()
            );
    END IF;
    IF NOT EXISTS (SELECT FROM pg_am WHERE amname = 'hnsw') THEN
        RAISE EXCEPTION 'extension "vector" of database "%" is too old: it has no HNSW index', current_database()
            USING ERRCODE = 'undefined_object',
            HINT = format(
                'Install pgvector 0.5.0 or newer, then as a superuser: psql -d %s -c ''ALTER EXTENSION vector UPDATE''',
                current_database()
            );
    END IF;
END
$$;

CREATE FUNCTION set_updated_at() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.updated_at := CURRENT_TIMESTAMP;
    RETURN NEW;
END
$$;

CREATE TABLE agents (
    id uuid NOT NULL DEFAULT uuid_generate_v4(),
    name text NOT NULL,
    description text,
    model text,
    system_prompt text,
    config jsonb NOT NULL DEFAULT '{}',
    status text NOT NULL DEFAULT 'active',
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT agents_pkey PRIMARY KEY (id),
    CONSTRAINT agents_name_not_empty CHECK (name <> ''),
    CONSTRAINT agents_config_is_object CHECK (jsonb_typeof(config) = 'object'),
    CONSTRAINT agents_status_known CHECK (status IN ('active', 'inactive', 'archived'))
);

CREATE TABLE sessions (
    id uuid NOT NULL DEFAULT uuid_generate_v4(),
    agent_id uuid NOT NULL,
    user_id text,
    status text NOT NULL DEFAULT 'active',
    history jsonb NOT NULL DEFAULT '[]',
    working_memory jsonb NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sessions_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT sessions_status_known CHECK (status IN ('active', 'paused', 'closed', 'archived')),
    CONSTRAINT sessions_history_is_array CHECK (jsonb_typeof(history) = 'array'),
    CONSTRAINT sessions_working_memory_is_object CHECK (jsonb_typeof(working_memory) = 'object'),
    CONSTRAINT sessions_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.05
);

CREATE TABLE memories (
    id uuid NOT NULL DEFAULT uuid_generate_v4(),
    agent_id uuid NOT NULL,
    session_id uuid,
    memory_type text NOT NULL DEFAULT 'semantic',
    content text NOT NULL,
    embedding vector(1536),
    importance real NOT NULL DEFAULT 0.5,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT memories_pkey PRIMARY KEY (id),
    CONSTRAINT memories_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT memories_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE SET NULL,
    CONSTRAINT memories_type_known CHECK (memory_type IN ('episodic', 'semantic', 'procedural')),
    CONSTRAINT memories_importance_in_range CHECK (importance BETWEEN 0 AND 1),
    CONSTRAINT memories_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
) WITH (toast_tuple_target = 8160);

ALTER TABLE memories ALTER COLUMN embedding SET STORAGE PLAIN;

CREATE TABLE activities (
    id uuid NOT NULL DEFAULT uuid_generate_v4(),
    agent_id uuid,
    session_id uuid,
    activity_type text NOT NULL,
    status text NOT NULL DEFAULT 'succeeded',
    details jsonb NOT NULL DEFAULT '{}',
    error text,
    duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT activities_pkey PRIMARY KEY (id),
    CONSTRAINT activities_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE SET NULL,
    CONSTRAINT activities_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE SET NULL,
    CONSTRAINT activities_type_not_empty CHECK (activity_type <> ''),
    CONSTRAINT activities_status_known CHECK (status IN ('started', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT activities_details_is_object CHECK (jsonb_typeof(details) = 'object'),
    CONSTRAINT activities_duration_not_negative CHECK (duration_ms >= 0)
) WITH (
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

CREATE TABLE metrics (
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    agent_id uuid,
    name text NOT NULL,
    value double precision NOT NULL,
    unit text,
    labels jsonb NOT NULL DEFAULT '{}',
    timestamp timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT metrics_pkey PRIMARY KEY (id),
    CONSTRAINT metrics_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE SET NULL,
    CONSTRAINT metrics_name_not_empty CHECK (name <> ''),
    CONSTRAINT metrics_labels_is_object CHECK (jsonb_typeof(labels) = 'object')
) WITH (
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

CREATE TABLE evaluations (
    id uuid NOT NULL DEFAULT uuid_generate_v4(),
    agent_id uuid NOT NULL,
    run_id uuid NOT NULL DEFAULT uuid_generate_v4(),
    name text NOT NULL,
    status text NOT NULL,
    score double precision,
    details jsonb NOT NULL DEFAULT '{}',
    duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT evaluations_pkey PRIMARY KEY (id),
    CONSTRAINT evaluations_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT evaluations_name_not_empty CHECK (name <> ''),
    CONSTRAINT evaluations_status_known CHECK (status IN ('passed', 'failed', 'error', 'skipped')),
    CONSTRAINT evaluations_details_is_object CHECK (jsonb_typeof(details) = 'object'),
    CONSTRAINT evaluations_duration_not_negative CHECK (duration_ms >= 0)
);

CREATE TABLE feedback (
    id uuid NOT NULL DEFAULT uuid_generate_v4(),
    agent_id uuid NOT NULL,
    session_id uuid,
    activity_id uuid,
    sentiment text NOT NULL DEFAULT 'neutral',
    rating smallint,
    comment text,
    source text NOT NULL DEFAULT 'user',
    status text NOT NULL DEFAULT 'open',
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT feedback_pkey PRIMARY KEY (id),
    CONSTRAINT feedback_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT feedback_session_id_fkey FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE SET NULL,
    CONSTRAINT feedback_activity_id_fkey FOREIGN KEY (activity_id) REFERENCES activities (id) ON DELETE SET NULL,
    CONSTRAINT feedback_sentiment_known CHECK (sentiment IN ('positive', 'neutral', 'negative')),
    CONSTRAINT feedback_rating_in_range CHECK (rating BETWEEN 1 AND 5),
    CONSTRAINT feedback_source_known CHECK (source IN ('user', 'reviewer', 'system')),
    CONSTRAINT feedback_status_known CHECK (status IN ('open', 'resolved', 'dismissed')),
    CONSTRAINT feedback_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
);

CREATE TABLE tools (
    id uuid NOT NULL DEFAULT uuid_generate_v4(),
    name text NOT NULL,
    description text,
    parameters jsonb NOT NULL DEFAULT '{}',
    enabled boolean NOT NULL DEFAULT TRUE,
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT tools_pkey PRIMARY KEY (id),
    CONSTRAINT tools_name_key UNIQUE (name),
    CONSTRAINT tools_name_not_empty CHECK (name <> ''),
    CONSTRAINT tools_parameters_is_object CHECK (jsonb_typeof(parameters) = 'object')
);

CREATE TABLE agent_tools (
    agent_id uuid NOT NULL,
    tool_id uuid NOT NULL,
    enabled boolean NOT NULL DEFAULT TRUE,
    config jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT agent_tools_pkey PRIMARY KEY (agent_id, tool_id),
    CONSTRAINT agent_tools_agent_id_fkey FOREIGN KEY (agent_id) REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT agent_tools_tool_id_fkey FOREIGN KEY (tool_id) REFERENCES tools (id) ON DELETE RESTRICT,
    CONSTRAINT agent_tools_config_is_object CHECK (jsonb_typeof(config) = 'object')
);

-- One index on each referencing column (agent_tools' primary key serves its agent_id), and what the contract's
-- queries look up. Columns that may be null are indexed without their nulls. created_at in the index of activities
-- lets agent_stats count them, and find the newest, in the index alone.
CREATE INDEX sessions_agent_id_idx ON sessions (agent_id);
CREATE INDEX sessions_expires_at_idx ON sessions (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX memories_agent_id_idx ON memories (agent_id);
CREATE INDEX memories_session_id_idx ON memories (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX memories_embedding_idx ON memories USING hnsw (embedding vector_cosine_ops);
CREATE INDEX activities_agent_id_created_at_idx ON activities (agent_id, created_at);
CREATE INDEX activities_session_id_idx ON activities (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX metrics_agent_id_idx ON metrics (agent_id) WHERE agent_id IS NOT NULL;
CREATE INDEX evaluations_agent_id_idx ON evaluations (agent_id);
CREATE INDEX feedback_agent_id_idx ON feedback (agent_id);
CREATE INDEX feedback_session_id_idx ON feedback (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX feedback_activity_id_idx ON feedback (activity_id) WHERE activity_id IS NOT NULL;
CREATE INDEX agent_tools_tool_id_idx ON agent_tools (tool_id);

CREATE TRIGGER agents_set_updated_at BEFORE UPDATE ON agents
FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER sessions_set_updated_at BEFORE UPDATE ON sessions
FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER memories_set_updated_at BEFORE UPDATE ON memories
FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER feedback_set_updated_at BEFORE UPDATE ON feedback
FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER tools_set_updated_at BEFORE UPDATE ON tools
FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER agent_tools_set_updated_at BEFORE UPDATE ON agent_tools
FOR EACH ROW EXECUTE FUNCTION set_updated_at();

-- A standard SQL body is resolved now, not when it is called: no search_path can lead it to other tables.
-- Rows that somebody holds are left for the next call: two calls, or a call and a live session, never wait.
CREATE FUNCTION cleanup_expired_sessions() RETURNS integer
LANGUAGE sql
BEGIN ATOMIC
    WITH expired AS (
        SELECT s.id
        FROM sessions AS s
        WHERE s.expires_at < CURRENT_TIMESTAMP
        FOR UPDATE SKIP LOCKED
    ),

    removed AS (
        DELETE FROM sessions AS s
        USING expired AS e
        WHERE s.id = e.id
        RETURNING s.id
    )

    SELECT count(*)::integer FROM removed;
END;

-- Each child table is aggregated by itself before it is joined: a join of two of them would multiply their rows.
-- A condition on agent_id reaches into all of them, so that one agent's line reads that agent's rows only.
CREATE VIEW agent_stats AS
WITH session_totals AS (
    SELECT
        agent_id,
        count(*) AS session_count,
        count(*) FILTER (WHERE status = 'active') AS active_session_count
    FROM sessions
    GROUP BY agent_id
),

memory_totals AS (
    SELECT
        agent_id,
        count(*) AS memory_count
    FROM memories
    GROUP BY agent_id
),

activity_totals AS (
    SELECT
        agent_id,
        count(*) AS activity_count,
        max(created_at) AS last_activity_at
    FROM activities
    GROUP BY agent_id
),

failure_totals AS (
    SELECT
        agent_id,
        count(*) AS recent_failure_count
    FROM activities
    WHERE status = 'failed' AND created_at >= CURRENT_TIMESTAMP - interval '24 hours'
    GROUP BY agent_id
),

evaluation_totals AS (
    SELECT
        agent_id,
        count(*) AS evaluation_count,
        avg(score) AS average_score
    FROM evaluations
    GROUP BY agent_id
),

feedback_totals AS (
    SELECT
        agent_id,
        count(*) AS feedback_count,
        avg(rating) AS average_rating
    FROM feedback
    GROUP BY agent_id
)

SELECT
    a.id AS agent_id,
    a.name AS agent_name,
    a.status AS agent_status,
    t.last_activity_at,
    e.average_score,
    f.average_rating,
    coalesce(s.session_count, 0) AS session_count,
    coalesce(s.active_session_count, 0) AS active_session_count,
    coalesce(m.memory_count, 0) AS memory_count,
    coalesce(t.activity_count, 0) AS activity_count,
    coalesce(x.recent_failure_count, 0) AS recent_failure_count,
    coalesce(e.evaluation_count, 0) AS evaluation_count,
    coalesce(f.feedback_count, 0) AS feedback_count
FROM agents AS a
LEFT JOIN session_totals AS s ON a.id = s.agent_id
LEFT JOIN memory_totals AS m ON a.id = m.agent_id
LEFT JOIN activity_totals AS t ON a.id = t.agent_id
LEFT JOIN failure_totals AS x ON a.id = x.agent_id
LEFT JOIN evaluation_totals AS e ON a.id = e.agent_id
LEFT JOIN feedback_totals AS f ON a.id = f.agent_id;

CREATE VIEW recent_feedback_summary AS
SELECT
    f.agent_id,
    a.name AS agent_name,
    count(*) AS feedback_count,
    count(*) FILTER (WHERE f.sentiment = 'positive') AS positive_count,
    count(*) FILTER (WHERE f.sentiment = 'neutral') AS neutral_count,
    count(*) FILTER (WHERE f.sentiment = 'negative') AS negative_count,
    count(*) FILTER (WHERE f.status = 'open') AS open_count,
    avg(f.rating) AS average_rating,
    max(f.created_at) AS last_feedback_at
FROM feedback AS f
INNER JOIN agents AS a ON f.agent_id = a.id
WHERE f.created_at >= CURRENT_TIMESTAMP - interval '7 days'
GROUP BY f.agent_id, a.name;

COMMENT ON TABLE agents IS 'Configurations and definitions of agents.';
COMMENT ON COLUMN agents.id IS 'Key, made by the database when the writer gives none.';
COMMENT ON COLUMN agents.name IS 'What people call the agent; need not be unique.';
COMMENT ON COLUMN agents.description IS 'What the agent is for.';
COMMENT ON COLUMN agents.model IS 'Name of the language model that the agent runs on.';
COMMENT ON COLUMN agents.system_prompt IS 'Instructions that open every conversation.';
COMMENT ON COLUMN agents.config IS 'All other configuration: a JSON object that the framework defines.';
COMMENT ON COLUMN agents.status IS
'active: may start sessions; inactive: paused by its owner; archived: kept for its history only.';
COMMENT ON COLUMN agents.created_at IS 'When the row was written.';
COMMENT ON COLUMN agents.updated_at IS 'When the row was last changed; set by trigger agents_set_updated_at.';

COMMENT ON TABLE sessions IS
'Conversation sessions with their history and working memory. Deleted with their agent.';
COMMENT ON COLUMN sessions.id IS 'Key, made by the database when the writer gives none.';
COMMENT ON COLUMN sessions.agent_id IS 'The agent that holds the conversation; its deletion deletes the session.';
COMMENT ON COLUMN sessions.user_id IS 'Who talks to the agent, in the words of the application.';
COMMENT ON COLUMN sessions.status IS
'active or paused: in use; closed: ended; archived: closed for longer than the retention rule allows.';
COMMENT ON COLUMN sessions.history IS 'The messages in order: a JSON array.';
COMMENT ON COLUMN sessions.working_memory IS 'What the agent keeps in mind during the session: a JSON object.';
COMMENT ON COLUMN sessions.metadata IS 'Whatever else the application keeps: a JSON object.';
COMMENT ON COLUMN sessions.expires_at IS
'From when on cleanup_expired_sessions() deletes the session; null: never.';
COMMENT ON COLUMN sessions.created_at IS 'When the row was written.';
COMMENT ON COLUMN sessions.updated_at IS
'When the row was last changed; set by trigger sessions_set_updated_at. Not indexed: updates stay heap-only.';

COMMENT ON TABLE memories IS 'Long-term memories with embeddings for semantic search. Deleted with their agent.';
COMMENT ON COLUMN memories.id IS 'Key, made by the database when the writer gives none.';
COMMENT ON COLUMN memories.agent_id IS 'Whose memory it is; the deletion of the agent deletes it.';
COMMENT ON COLUMN memories.session_id IS
'The session that it comes from; null when unknown or when that session is gone.';
COMMENT ON COLUMN memories.memory_type IS
'episodic: something that happened; semantic: a fact; procedural: how to do something.';
COMMENT ON COLUMN memories.content IS 'The remembered text.';
COMMENT ON COLUMN memories.embedding IS
'The text as a vector of 1536 dimensions, compared by cosine distance (<=>); null until it is computed.';
COMMENT ON COLUMN memories.importance IS 'Weight from 0 (may be forgotten) to 1 (must be kept).';
COMMENT ON COLUMN memories.metadata IS 'Whatever else the application keeps: a JSON object.';
COMMENT ON COLUMN memories.created_at IS 'When the row was written.';
COMMENT ON COLUMN memories.updated_at IS 'When the row was last changed; set by trigger memories_set_updated_at.';

COMMENT ON TABLE activities IS
'Audit log of all actions and executions of agents. Outlives agents and sessions; kept for 90 days.';
COMMENT ON COLUMN activities.id IS 'Key, made by the database when the writer gives none.';
COMMENT ON COLUMN activities.agent_id IS
'Who acted; null when the agent has been deleted or the system itself acted.';
COMMENT ON COLUMN activities.session_id IS 'In which session; null when there was none or it has been deleted.';
COMMENT ON COLUMN activities.activity_type IS 'What was done, such as tool_call or message; an open list.';
COMMENT ON COLUMN activities.status IS 'started, or how it ended: succeeded, failed, cancelled.';
COMMENT ON COLUMN activities.details IS 'Input, output and whatever else belongs to it: a JSON object.';
COMMENT ON COLUMN activities.error IS 'The message of a failure.';
COMMENT ON COLUMN activities.duration_ms IS 'How long it took, in milliseconds.';
COMMENT ON COLUMN activities.created_at IS 'When it began; the retention rule counts from here.';

COMMENT ON TABLE metrics IS 'Time series for monitoring, one point a row. Outlives agents; kept for 30 days.';
COMMENT ON COLUMN metrics.id IS 'Key, counted up: nobody refers to a point, and a counter costs half of a uuid.';
COMMENT ON COLUMN metrics.agent_id IS 'Whom the point is about; null: the system, or a deleted agent.';
COMMENT ON COLUMN metrics.name IS 'Name of the series, such as tokens_used.';
COMMENT ON COLUMN metrics.value IS 'The measured value.';
COMMENT ON COLUMN metrics.unit IS 'Unit of the value, such as ms or tokens.';
COMMENT ON COLUMN metrics.labels IS 'What tells series of one name apart: a JSON object.';
COMMENT ON COLUMN metrics.timestamp IS 'When it was measured; the retention rule counts from here.';

COMMENT ON TABLE evaluations IS 'Results of automated evaluation runs, one case a row. Deleted with their agent.';
COMMENT ON COLUMN evaluations.id IS 'Key, made by the database when the writer gives none.';
COMMENT ON COLUMN evaluations.agent_id IS 'The evaluated agent; its deletion deletes the result.';
COMMENT ON COLUMN evaluations.run_id IS 'Which run the case belongs to; the same in all cases of a run.';
COMMENT ON COLUMN evaluations.name IS 'Name of the evaluated case.';
COMMENT ON COLUMN evaluations.status IS
'passed or failed: the verdict; error: no verdict could be reached; skipped: not run.';
COMMENT ON COLUMN evaluations.score IS 'The score, in the scale of the case; null when there is none.';
COMMENT ON COLUMN evaluations.details IS
'Expected and actual output and whatever else belongs to it: a JSON object.';
COMMENT ON COLUMN evaluations.duration_ms IS 'How long the case took, in milliseconds.';
COMMENT ON COLUMN evaluations.created_at IS 'When the row was written.';

COMMENT ON TABLE feedback IS 'Feedback from production for the improvement loop. Deleted with its agent.';
COMMENT ON COLUMN feedback.id IS 'Key, made by the database when the writer gives none.';
COMMENT ON COLUMN feedback.agent_id IS 'The judged agent; its deletion deletes the feedback.';
COMMENT ON COLUMN feedback.session_id IS 'The judged session; null when unknown or when it has been deleted.';
COMMENT ON COLUMN feedback.activity_id IS 'The judged action; null when unknown or when it has been deleted.';
COMMENT ON COLUMN feedback.sentiment IS 'positive, neutral or negative.';
COMMENT ON COLUMN feedback.rating IS 'Stars from 1 (worst) to 5 (best); null when none were given.';
COMMENT ON COLUMN feedback.comment IS 'What was said.';
COMMENT ON COLUMN feedback.source IS 'Who said it: user, reviewer or system.';
COMMENT ON COLUMN feedback.status IS 'open: to be looked at; resolved: led to an improvement; dismissed: did not.';
COMMENT ON COLUMN feedback.metadata IS 'Whatever else the application keeps: a JSON object.';
COMMENT ON COLUMN feedback.created_at IS 'When it was given; recent_feedback_summary counts from here.';
COMMENT ON COLUMN feedback.updated_at IS 'When the row was last changed; set by trigger feedback_set_updated_at.';

COMMENT ON TABLE tools IS 'Registry of the tools that agents may use.';
COMMENT ON COLUMN tools.id IS 'Key, made by the database when the writer gives none.';
COMMENT ON COLUMN tools.name IS 'Unique name by which an agent calls the tool.';
COMMENT ON COLUMN tools.description IS 'What the tool does, as the model is told.';
COMMENT ON COLUMN tools.parameters IS 'What the tool takes: a JSON Schema object.';
COMMENT ON COLUMN tools.enabled IS 'False: no agent may use it now.';
COMMENT ON COLUMN tools.created_at IS 'When the row was written.';
COMMENT ON COLUMN tools.updated_at IS 'When the row was last changed; set by trigger tools_set_updated_at.';

COMMENT ON TABLE agent_tools IS
'Which agent may use which tool. Deleted with the agent; a tool that is in use cannot be deleted.';
COMMENT ON COLUMN agent_tools.agent_id IS 'The agent.';
COMMENT ON COLUMN agent_tools.tool_id IS 'The tool.';
COMMENT ON COLUMN agent_tools.enabled IS 'False: this agent may not use it now.';
COMMENT ON COLUMN agent_tools.config IS 'Settings of the tool for this agent: a JSON object.';
COMMENT ON COLUMN agent_tools.created_at IS 'When the row was written.';
COMMENT ON COLUMN agent_tools.updated_at IS
'When the row was last changed; set by trigger agent_tools_set_updated_at.';

COMMENT ON VIEW agent_stats IS
'Aggregated statistics, one row for each agent; agents without rows elsewhere show zeros.';
COMMENT ON COLUMN agent_stats.agent_id IS 'The agent.';
COMMENT ON COLUMN agent_stats.agent_name IS 'Its name.';
COMMENT ON COLUMN agent_stats.agent_status IS 'Its status.';
COMMENT ON COLUMN agent_stats.last_activity_at IS 'When its newest activity began; null: none is kept.';
COMMENT ON COLUMN agent_stats.average_score IS 'Mean score of its evaluations; null: none has a score.';
COMMENT ON COLUMN agent_stats.average_rating IS
'Mean rating of its feedback, from 1 to 5; null: none has a rating.';
COMMENT ON COLUMN agent_stats.session_count IS 'Its sessions.';
COMMENT ON COLUMN agent_stats.active_session_count IS 'Its sessions with status active.';
COMMENT ON COLUMN agent_stats.memory_count IS 'Its memories.';
COMMENT ON COLUMN agent_stats.activity_count IS 'Its activities within their retention.';
COMMENT ON COLUMN agent_stats.recent_failure_count IS 'Its failed activities of the last 24 hours.';
COMMENT ON COLUMN agent_stats.evaluation_count IS 'Results of its evaluations.';
COMMENT ON COLUMN agent_stats.feedback_count IS 'Its feedback, of any age.';

COMMENT ON VIEW recent_feedback_summary IS 'Feedback of the last 7 days, one row for each agent that got any.';
COMMENT ON COLUMN recent_feedback_summary.agent_id IS 'The agent.';
COMMENT ON COLUMN recent_feedback_summary.agent_name IS 'Its name.';
COMMENT ON COLUMN recent_feedback_summary.feedback_count IS 'How many.';
COMMENT ON COLUMN recent_feedback_summary.positive_count IS 'How many were positive.';
COMMENT ON COLUMN recent_feedback_summary.neutral_count IS 'How many were neutral.';
COMMENT ON COLUMN recent_feedback_summary.negative_count IS 'How many were negative.';
COMMENT ON COLUMN recent_feedback_summary.open_count IS 'How many are still open.';
COMMENT ON COLUMN recent_feedback_summary.average_rating IS 'Mean rating, from 1 to 5; null: none has a rating.';
COMMENT ON COLUMN recent_feedback_summary.last_feedback_at IS 'When the newest was given.';

COMMENT ON FUNCTION set_updated_at() IS
'Trigger function: stamps updated_at with the time at which the transaction began.';
COMMENT ON FUNCTION cleanup_expired_sessions() IS
'Deletes the sessions whose expires_at has passed and that nobody has locked; returns how many.';

COMMIT;
