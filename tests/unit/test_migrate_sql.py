"""Splitting SQL text into statements, and detecting forbidden ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.host.migrate import sql

WHOLE = [
    "SELECT 1",
    "INSERT INTO t VALUES (1, 'a;b', 'it''s')",
    "SELECT ';' || E'\\';' || \";\"",
    "DO $$ BEGIN ROLLBACK; END $$",
    "DO $a$ ; $$ ; $a$",
    "SELECT 1 /* ; /* ; */ ; */ + 2",
    "SELECT 1 -- ; '\n + 2",
    "SELECT (1; 2)",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
    "CREATE OR REPLACE PROCEDURE p(a int) BEGIN ATOMIC INSERT INTO t VALUES (1); END",
    "SELECT foo$x$ , bar",
    "INSERT INTO t VALUES (-1, 1 - 2, '--', '/*')",
    "SELECT name'x'",
    "SELECT '\\'",
]


BESIDE = ", which the server refuses together with other statements"
DO_ROLLBACK = "DO with a ROLLBACK, which reverts the statements before it"


@pytest.mark.parametrize("text", WHOLE)
def test_single_statement_is_not_split(text: str) -> None:
    assert [text.encode()[s.start : s.end].decode() for s in sql.statements(text.encode())] == [text]


@given(st.lists(st.sampled_from(WHOLE), max_size=6), st.sampled_from([";", ";\n", " ; ;\n-- x;\n", ";/* ; */"]))
def test_statements_are_found_where_they_were_put(texts: list[str], separator: str) -> None:
    body = separator.join(texts).encode()
    assert [body[s.start : s.end].decode().strip() for s in sql.statements(body)] == texts


@given(st.text(alphabet="SELECT;'\"$x()/*-\\ \nE", max_size=60))
def test_no_text_breaks_the_splitter(text: str) -> None:
    found = list(sql.statements(text.encode()))
    assert all(0 <= s.start <= s.end <= len(text) for s in found)
    sql.hazards(text.encode())


@pytest.mark.parametrize("text", ["", " \n", "-- only a comment", "/* /* ; */ */", ";;;"])
def test_empty_text_has_no_statement(text: str) -> None:
    assert list(sql.statements(text.encode())) == []


@pytest.mark.parametrize(
    ("text", "line", "seen"),
    [
        ("SELECT 1;\nROLLBACK;", 2, "ROLLBACK, which reverts the file"),
        ("abort", 1, "ABORT, which reverts the file"),
        ("BEGIN;\nSELECT 1;\nROLLBACK AND NO CHAIN;", 3, "ROLLBACK, which reverts the file"),
        ("\nBEGIN;\nSELECT 1;", 2, "a transaction without COMMIT"),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE;", 1, "a transaction without COMMIT"),
        ("BEGIN; SELECT 1; COMMIT AND CHAIN; SELECT 2", 1, "a transaction without COMMIT"),
        ("BEGIN; PREPARE TRANSACTION 'x';", 1, "PREPARE TRANSACTION, which keeps its locks"),
        ("DO $$ BEGIN CREATE TABLE t (); ROLLBACK; END $$", 1, DO_ROLLBACK),
        ("DO $$ BEGIN ROLLBACK -- all of it\n; END $$", 1, DO_ROLLBACK),
        ("do 'begin rollback/* x */and chain; end'", 1, DO_ROLLBACK),
        ("discard all", 1, "DISCARD ALL, which releases the migration lock"),
        ("COPY t (a, b) FROM STDIN WITH (FORMAT csv);\n1,'\n\\.", 1, "COPY FROM STDIN or TO STDOUT"),
        ("COPY (SELECT 1) TO STDOUT", 1, "COPY FROM STDIN or TO STDOUT"),
        ("SELECT 1;\n\\i other.sql", 2, "a psql command (\\)"),
        ("\\set x 1\nSELECT :x", 1, "a psql command (\\)"),
        (
            "CREATE TABLE t();\nCREATE INDEX CONCURRENTLY i ON t (a);",
            2,
            "CREATE ... CONCURRENTLY, which the server refuses together with other statements",
        ),
        (
            "DROP INDEX CONCURRENTLY IF EXISTS i;\nSELECT 1",
            1,
            "DROP ... CONCURRENTLY, which the server refuses together with other statements",
        ),
        ("SELECT 1;\nVACUUM t", 2, "VACUUM" + BESIDE),
        (
            "ALTER TABLE t DETACH PARTITION p CONCURRENTLY;\nSELECT 1",
            1,
            "ALTER ... CONCURRENTLY, which the server refuses together with other statements",
        ),
        (
            "ALTER SYSTEM SET work_mem = '1MB';\nSELECT 1",
            1,
            "ALTER SYSTEM, which the server refuses together with other statements",
        ),
        ("SET ROLE other;\nCREATE TABLE t()", 1, "a SET ROLE without RESET ROLE"),
        ("SET SESSION AUTHORIZATION other", 1, "a SET ROLE without RESET ROLE"),
        ("SET SESSION ROLE other", 1, "a SET ROLE without RESET ROLE"),
    ],
)
def test_detects_forbidden_statements(text: str, line: int, seen: str) -> None:
    (hazard,) = sql.hazards(text.encode())
    assert (sql.place(text.encode(), hazard.offset)[0], hazard.seen) == (line, seen)


@pytest.mark.parametrize(
    "text",
    [
        *WHOLE[:3],
        "BEGIN; SELECT 1; COMMIT",
        "BEGIN; SAVEPOINT a; ROLLBACK TO SAVEPOINT a; COMMIT;",
        "BEGIN; ROLLBACK WORK TO a; END;",
        "DO $$ BEGIN EXECUTE 'rollback to x'; END $$",
        "COMMENT ON TABLE t IS 'ROLLBACK; \\i x'",
        "-- ROLLBACK;\n/* BEGIN; */ SELECT 1",
        "COPY t FROM '/srv/data.csv'",
        "SET ROLE other; CREATE TABLE t(); RESET ROLE",
        "SET ROLE other; SET ROLE NONE",
        "BEGIN; SET LOCAL ROLE other; CREATE TABLE t(); COMMIT",
        "SET SESSION AUTHORIZATION other; RESET SESSION AUTHORIZATION",
        "SELECT 'unclosed; ROLLBACK",
        'CREATE TABLE "ROLLBACK"()',
        "SELECT E'\\\\ \\' ; ROLLBACK'",
        "DISCARD TEMP",
        "BEGIN; COMMIT AND NO CHAIN",
        "CREATE INDEX CONCURRENTLY i ON t (a); -- alone\n;",
        "VACUUM (ANALYZE) t",
        "CREATE TABLE t(concurrently_x int); CREATE INDEX ON t (concurrently_x)",
        "SELECT 1; REFRESH MATERIALIZED VIEW CONCURRENTLY v",
        "CREATE TABLE t(); COMMENT ON TABLE t IS 'CREATE INDEX CONCURRENTLY'",
    ],
)
def test_allows_other_statements(text: str) -> None:
    assert sql.hazards(text.encode()) == []


@given(st.text(alphabet="aé表😀\n", min_size=1, max_size=50), st.data())
def test_server_position_is_converted_back(text: str, data: st.DataObject) -> None:
    position = data.draw(st.integers(1, len(text)))
    before = text[: position - 1]
    body = text.encode()
    offset = sql.offset_of(body, position)
    assert body[:offset].decode() == before
    assert sql.place(body, offset) == (before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1)


def test_first_line_is_masked_and_truncated() -> None:
    role = b"CREATE ROLE a PASSWORD 'geheim' LOGIN\n IN ROLE b; SELECT 1"
    assert sql.first_line(role, 0, 49) == "CREATE ROLE a PASSWORD '...'"
    assert sql.first_line(b"SELECT " + b"1" * 1000, 0, 1007) == "SELECT " + 93 * "1" + "..."


@pytest.mark.parametrize(
    ("text", "survives"),
    [
        ("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS a ON t (b)", True),
        ("REINDEX (VERBOSE) TABLE CONCURRENTLY t", True),
        ("VACUUM t", True),
        ("CALL p()", True),
        ("CREATE INDEX concurrently_made ON t (b)", False),
        ("CREATE TABLE t ()", False),
    ],
)
def test_recognises_statements_that_commit_internally(text: str, survives: bool) -> None:
    (statement,) = sql.statements(text.encode())
    assert statement.survives_rollback is survives


def test_statements_sent_one_by_one_may_stand_beside_others() -> None:
    body = b"CREATE TABLE t(); CREATE INDEX CONCURRENTLY i ON t (a)"
    assert len(sql.hazards(body)) == 1
    assert sql.hazards(body, separately=True) == []


def test_characters_that_mislead_the_eye_are_named() -> None:
    assert sql.unseen("CREATE\u00a0TABLE\u200b t (a text DEFAULT \u2018x\u2018)") == [
        "U+00A0 NO-BREAK SPACE",
        "U+200B ZERO WIDTH SPACE",
        "U+2018 LEFT SINGLE QUOTATION MARK",
    ]
    assert sql.unseen("CREATE TABLE größe ()") == []
