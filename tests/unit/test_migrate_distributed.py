"""What Citus refuses on a distributed schema is named before a file is applied."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.host.migrate import distributed, sql

MIGRATIONS = Path(__file__).parents[2] / "migrations"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DROP INDEX a, b", ("several objects in one DROP: a statement for each",)),
        ("ALTER TABLE t ALTER COLUMN v SET STORAGE PLAIN",
         ("SET STORAGE is not supported: do it before the schema is distributed",)),
        ("ALTER TABLE t ALTER COLUMN v SET STATISTICS 100",
         ("SET STATISTICS is not supported: do it before the schema is distributed",)),
        ("ALTER TABLE t ADD CONSTRAINT c CHECK (true), ADD COLUMN x int",
         ("ADD CONSTRAINT must be alone: a statement for each",)),
        ("ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
         ("DETACH PARTITION CONCURRENTLY is not supported: DETACH PARTITION",)),
        ("CREATE TABLE t OF kind", ("CREATE TABLE OF is not supported: list the columns",)),
        ("CREATE TABLE t () INHERITS (parent)",
         ("INHERITS is not supported: a partitioned table, or a table of its own",)),
        ("CREATE TEMPORARY TABLE t ()", ("a temporary table cannot be distributed",)),
        ("CREATE SCHEMA s CREATE TABLE t ()", ("a table inside CREATE SCHEMA: a statement for each",)),
        ("CREATE STATISTICS ON a, b FROM t", ("CREATE STATISTICS without a name: name it",)),
        ("CLUSTER VERBOSE t USING i", ("CLUSTER VERBOSE is not supported: CLUSTER",)),
        ("CREATE TRIGGER g BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f()",
         ("a trigger needs citus.enable_unsafe_triggers on every node",)),
        ("CREATE FOREIGN TABLE t () SERVER s", ("a foreign table cannot be created in a distributed schema",)),
    ],
)  # fmt: skip
def test_names_what_is_refused(statement: str, expected: tuple[str, ...]) -> None:
    assert distributed.refusals(statement) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "DROP INDEX a",
        "DROP TABLE a, b",
        "ALTER TABLE t ADD COLUMN x int, DROP COLUMN y",
        "ALTER TABLE t ALTER COLUMN v SET DEFAULT 1",
        "ALTER TABLE t SET (fillfactor = 80)",
        "CREATE TABLE p PARTITION OF t FOR VALUES IN (1)",
        "CREATE INDEX CONCURRENTLY i ON t (a)",
        "CREATE STATISTICS s ON a, b FROM t",
        "CREATE VIEW v AS SELECT 1",
        "not SQL at all",
    ],
)
def test_leaves_what_is_supported(statement: str) -> None:
    assert distributed.refusals(statement) == ()


def test_only_the_first_migration_has_statements_for_a_plain_schema() -> None:
    found = {}
    for path in sorted(MIGRATIONS.glob("*.sql")):
        body = path.read_bytes()
        texts = [body[each.start : each.end].decode() for each in sql.statements(body)]
        found[path.name] = sorted({why for text in texts for why in distributed.refusals(text)})
    assert {name: why for name, why in found.items() if why} == {
        "001_initial_schema.up.sql": [
            "SET STORAGE is not supported: do it before the schema is distributed",
            "a trigger needs citus.enable_unsafe_triggers on every node",
        ]
    }
