"""Clusters that an administrator set up by hand, as the framework's older instructions say, with rows of many kinds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.integration.rows import ONE_OF_EACH
from tests.sandboxes import Host
from tests.system.playbooks import ROOT

MIGRATION = (ROOT / "migrations/001_initial_schema.up.sql").read_text()
PACKAGES = "postgresql-17 postgresql-17-pgvector"

BY_THE_BOOK = """
CREATE USER minion WITH PASSWORD 'minion_secret';
CREATE DATABASE minion OWNER minion;
\\c minion
CREATE EXTENSION IF NOT EXISTS "uuid-ossp";
CREATE EXTENSION IF NOT EXISTS "vector";
GRANT ALL PRIVILEGES ON DATABASE minion TO minion;
GRANT ALL ON SCHEMA public TO minion;
"""

# The embeddings come from a seed, so that a failure can be looked at again.
ROWS = f"""{ONE_OF_EACH}
SELECT setseed(0.42);
INSERT INTO agents (name, config)
SELECT 'agent ' || n, jsonb_build_object('n', n, 'ü', '☃') FROM generate_series(1, 40) n;
INSERT INTO memories (agent_id, content, embedding)
SELECT a.id, 'memory of ' || a.name || E'\\n' || repeat('x', 100 * n),
    ARRAY(SELECT random() + n * 0 FROM generate_series(1, 1536))::vector
FROM agents a, generate_series(1, 3) n WHERE a.name LIKE 'agent %';
INSERT INTO metrics (agent_id, name, value) SELECT id, 'tokens', random() FROM agents, generate_series(1, 20);
INSERT INTO activities (agent_id, activity_type, details) SELECT id, 'message', '{{"a": [1, null]}}' FROM agents;
"""

# What golang-migrate leaves of the first version.
VERSION_TABLE = """
CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);
INSERT INTO schema_migrations VALUES (1, false);
"""

TABLES = ("activities", "agent_tools", "agents", "evaluations", "feedback", "memories", "metrics", "sessions", "tools")
CHECKSUMS = " UNION ALL ".join(
    f"SELECT '{table} ' || count(*) || ' ' || md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {table} t"
    for table in TABLES
)


def sql(host: Host, text: str, database: str = "minion", user: str = "") -> str:
    """Run statements as postgres over the socket, or as a user with the published password; give what they say."""
    login = f"PGPASSWORD=minion_secret psql -h 127.0.0.1 -U {user}" if user else "runuser -u postgres -- psql"
    done = host.run(f"{login} -XAtq -v ON_ERROR_STOP=1 -d {database} <<'END_OF_SQL'\n{text}\nEND_OF_SQL\n")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make(by_psql: Host, by_golang: Host) -> None:
    """Set both hosts up: on one psql as postgres made the schema, on the other golang-migrate as minion.

    An image that has the packages has no cluster, which the package makes when it is installed.
    """

    def install(host: Host) -> None:
        packages = f"apt-get -q update && apt-get -qy install --no-install-recommends {PACKAGES}"
        present = "test -e /usr/share/postgresql/17/extension/vector.control"
        done = host.run(f"if {present}; then pg_createcluster --locale=C.UTF-8 --start 17 main; else {packages}; fi")
        assert done.returncode == 0, done.stderr
        sql(host, BY_THE_BOOK, database="postgres")

    with ThreadPoolExecutor() as both:
        list(both.map(install, (by_psql, by_golang)))
    sql(by_psql, "ALTER SYSTEM SET log_min_duration_statement = '7s'; ALTER USER minion SUPERUSER; " + MIGRATION + ROWS)
    configuration = "/etc/postgresql/17/main"
    written = by_psql.run(
        f"echo 'host all all 0.0.0.0/0 md5  # let everybody in' >> {configuration}/pg_hba.conf && "
        f"echo \"deadlock_timeout = '3s'\" >> {configuration}/postgresql.conf && "
        f"echo \"work_mem = '5MB'\" >> {configuration}/postgresql.conf && pg_ctlcluster 17 main reload"
    )
    assert written.returncode == 0, written.stderr
    sql(by_golang, MIGRATION + VERSION_TABLE + ROWS, user="minion")


def checksums(host: Host) -> list[str]:
    """Name each table with its number of rows and the checksum of all of them."""
    return sql(host, CHECKSUMS).splitlines()
