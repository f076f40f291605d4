"""The locks and table rewrites that `plan` predicts are those of a running server."""

from __future__ import annotations

import psycopg
import pytest

from provision.host.migrate.locks import MODES, judge
from tests.clusters import Cluster
from tests.integration.migrations import shared_database

__all__ = ["shared_database"]  # a fixture

SETUP = """
CREATE SCHEMA locks;
SET search_path = locks;
CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE b (id int PRIMARY KEY);
CREATE TABLE a (id int PRIMARY KEY, n int, words varchar(20), at timestamptz, b int REFERENCES b);
INSERT INTO b SELECT generate_series(1, 50); INSERT INTO a SELECT g, g, 'x', now(), g FROM generate_series(1, 50) g;
CREATE INDEX a_n ON a (n); CREATE UNIQUE INDEX a_u ON a (n);
ALTER TABLE a ADD CONSTRAINT positive CHECK (n > 0) NOT VALID;
CREATE TRIGGER tt BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION t();
CREATE VIEW v AS SELECT id FROM b;
CREATE MATERIALIZED VIEW m AS SELECT id FROM b;
CREATE TABLE p (id int) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (10);
CREATE TABLE p2 (id int);
CREATE TABLE parent (id int);
CREATE SEQUENCE s;
CREATE POLICY pol ON a USING (true);
"""

CASES = [
    "SELECT n FROM a",
    "SELECT n FROM a FOR UPDATE",
    "WITH x AS (SELECT id FROM b) SELECT id FROM x",
    "INSERT INTO a (id) VALUES (1000)",
    "INSERT INTO a (id) SELECT id + 100 FROM b",
    "UPDATE a SET words = id WHERE id = 1",
    "DELETE FROM a",
    "CREATE INDEX i ON a (words)",
    "DROP TABLE a",
    "DROP VIEW v",
    "DROP TRIGGER tt ON a",
    "DROP POLICY pol ON a",
    "TRUNCATE a",
    "LOCK TABLE a IN SHARE MODE",
    "LOCK TABLE a",
    "COMMENT ON TABLE a IS 'x'",
    "COMMENT ON COLUMN a.n IS 'x'",
    "CREATE TRIGGER t2 BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION t()",
    "CREATE POLICY p2 ON a USING (true)",
    "CREATE RULE r AS ON UPDATE TO b DO INSTEAD NOTHING",
    "CREATE STATISTICS st ON id, n FROM a",
    "CREATE TABLE c (id int REFERENCES b)",
    "CREATE TABLE c (LIKE a)",
    "CREATE TABLE c () INHERITS (parent)",
    "CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30)",
    "CREATE TABLE c AS SELECT * FROM a",
    "CREATE OR REPLACE VIEW v AS SELECT id FROM b",
    "REFRESH MATERIALIZED VIEW m",
    "REINDEX TABLE a",
    "CLUSTER a USING a_n",
    "ANALYZE a",
    "ALTER SEQUENCE s RESTART",
    "ALTER TABLE a RENAME TO c",
    "ALTER TABLE a RENAME COLUMN n TO k",
    "ALTER INDEX a_n RENAME TO k",
    "ALTER TABLE a SET SCHEMA public",
    "ALTER TABLE a ADD COLUMN x int",
    "ALTER TABLE a ADD COLUMN x int NOT NULL DEFAULT 7",
    "ALTER TABLE a ADD COLUMN x timestamptz DEFAULT now()",
    "ALTER TABLE a ADD COLUMN x timestamptz DEFAULT CURRENT_TIMESTAMP",
    "ALTER TABLE a ADD COLUMN x jsonb NOT NULL DEFAULT '{}'::jsonb",
    "ALTER TABLE a ADD COLUMN x uuid DEFAULT gen_random_uuid()",
    "ALTER TABLE a ADD COLUMN x float DEFAULT random() * 2",
    "ALTER TABLE a ADD COLUMN x bigserial",
    "ALTER TABLE a ADD COLUMN x int GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE a ADD COLUMN x int GENERATED ALWAYS AS (n * 2) STORED",
    "ALTER TABLE a ADD COLUMN x int REFERENCES b",
    "ALTER TABLE a DROP COLUMN n",
    "ALTER TABLE a ALTER n SET DEFAULT 3",
    "ALTER TABLE a ALTER n SET NOT NULL",
    "ALTER TABLE a ALTER n DROP NOT NULL, DROP CONSTRAINT positive",
    "ALTER TABLE a ALTER n SET STATISTICS 500",
    "ALTER TABLE a ALTER words SET STORAGE EXTERNAL",
    "ALTER TABLE a ALTER n SET (n_distinct = 5)",
    "ALTER TABLE a SET (fillfactor = 80)",
    "ALTER TABLE a SET (autovacuum_vacuum_scale_factor = 0.05)",
    "ALTER TABLE a RESET (fillfactor)",
    "ALTER TABLE a SET UNLOGGED",
    "ALTER TABLE a CLUSTER ON a_n",
    "ALTER TABLE a SET WITHOUT CLUSTER",
    "ALTER TABLE a ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE a DISABLE TRIGGER tt",
    "ALTER TABLE a OWNER TO CURRENT_USER",
    "ALTER TABLE a REPLICA IDENTITY FULL",
    "ALTER TABLE a INHERIT parent",
    "ALTER TABLE a ADD CONSTRAINT k CHECK (n < 1000)",
    "ALTER TABLE a ADD CONSTRAINT k CHECK (n < 1000) NOT VALID",
    "ALTER TABLE a VALIDATE CONSTRAINT positive",
    "ALTER TABLE a DROP CONSTRAINT positive",
    "ALTER TABLE a ADD CONSTRAINT k UNIQUE (words, id)",
    "ALTER TABLE a ADD CONSTRAINT k UNIQUE USING INDEX a_u",
    "ALTER TABLE a ADD CONSTRAINT k FOREIGN KEY (n) REFERENCES b",
    "ALTER TABLE a ADD CONSTRAINT k FOREIGN KEY (n) REFERENCES b NOT VALID",
    "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
    "ALTER TABLE p DETACH PARTITION p1",
    "ALTER TABLE a ALTER n TYPE bigint",
    "ALTER TABLE a ALTER words TYPE text",
    "ALTER TABLE a ADD COLUMN x int, ALTER n SET STATISTICS 10",
]
NOT_FORETOLD = {
    "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)": {"p2", "p1"},
    "ALTER TABLE p DETACH PARTITION p1": {"p1"},
    "ALTER TABLE a INHERIT parent": {"parent"},
    "CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30)": {"p1"},
    "DROP TABLE a": {"b"},
    "REFRESH MATERIALIZED VIEW m": {"b"},
    "INSERT INTO a (id) VALUES (1000)": {"b"},
}
"""Tables that the server locks as well, known only from its catalogue."""


@pytest.fixture(scope="module")
def prepared(cluster: Cluster, shared_database: str) -> str:
    with psycopg.connect(cluster.url(shared_database), autocommit=True) as connection:
        connection.execute(SETUP.encode())
    return cluster.url(shared_database, options="-c search_path=locks,public")


@pytest.mark.parametrize("statement", CASES)
def test_server_takes_the_predicted_locks(prepared: str, statement: str) -> None:
    with psycopg.connect(prepared) as connection:
        there = connection.execute(
            "SELECT oid, relname, pg_relation_filenode(oid) FROM pg_class WHERE relnamespace = 'locks'::regnamespace"
            " AND relkind IN ('r', 'p', 'v', 'm', 'S')"
        ).fetchall()
        connection.rollback()
        connection.execute(statement.encode())
        held: dict[str, str] = {}
        names = {oid: name for oid, name, _ in there}
        rows = connection.execute(
            "SELECT relation, mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation = ANY(%s)", (list(names),)
        ).fetchall()
        for oid, mode in rows:
            words = _words(mode)
            held[names[oid]] = max(held.get(names[oid], words), words, key=MODES.index)
        after: dict[int, int] = dict(
            connection.execute("SELECT oid, pg_relation_filenode(oid) FROM pg_class").fetchall()
        )
        moved = {name for oid, name, node in there if node is not None and oid in after and after[oid] != node}
        connection.rollback()
    verdict = judge(statement)
    assert verdict.unknown == ""
    foretold = {lock.table: lock.mode for lock in verdict.locks}
    if statement == "ALTER INDEX a_n RENAME TO k":
        assert foretold == {"a_n": "SHARE UPDATE EXCLUSIVE"}
        return
    further = NOT_FORETOLD.get(statement, set())
    assert foretold == {name: mode for name, mode in held.items() if name not in further}
    for lock in verdict.locks:
        if "empties" not in lock.why:
            assert lock.rewrites in (("yes", "maybe") if lock.table in moved - {"s"} else ("no", "maybe"))


def _words(mode: str) -> str:
    """AccessExclusiveLock -> ACCESS EXCLUSIVE."""
    text = "".join(f" {letter}" if letter.isupper() else letter for letter in mode.removesuffix("Lock"))
    return text.strip().upper()
