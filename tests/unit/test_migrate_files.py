"""Names and content of migration files, by golang-migrate's rules (source/parse.go)."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provision.host.migrate.files import Content, File, Inspector, Severity, arrange, parse


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("001_initial_schema.up.sql", (1, "initial_schema", "up", "sql")),
        ("1_a.down.sql", (1, "a", "down", "sql")),
        ("0_zero.up.sql", (0, "zero", "up", "sql")),
        ("20261123010203_later.up.sql", (20261123010203, "later", "up", "sql")),
        ("1_.up.sql", (1, "", "up", "sql")),
        ("1_a.up.", (1, "a", "up", "")),
        ("1_a.up.sql.bak", (1, "a", "up", "sql.bak")),
        ("1_a.up.sql~", (1, "a", "up", "sql~")),
        ("1_a.up.down.sql", (1, "a.up", "down", "sql")),
        ("1_a.up.up.up.sql", (1, "a.up.up", "up", "sql")),
        ("2_größe_表.up.sql", (2, "größe_表", "up", "sql")),
    ],
)
def test_reads_names_as_golang_migrate_does(name: str, expected: tuple[int, str, str, str]) -> None:
    file = parse(name)
    assert file is not None
    assert (file.version, file.title, file.direction, file.extension) == expected


@pytest.mark.parametrize(
    "name",
    [
        "a_1.up.sql",
        "1a.up.sql",
        "1_a.sql",
        "1_a.UP.sql",
        "1_a.up",
        "-1_a.up.sql",
        "٣_a.up.sql",
        "1_a\n.up.sql",
        " 1_a.up.sql",
        "",
    ],
)
def test_other_names_are_not_migrations(name: str) -> None:
    assert parse(name) is None


def test_leading_zeros_do_not_count_and_order_is_numeric() -> None:
    catalogue = arrange(["10_c.up.sql", "009_b.up.sql", "1_a.up.sql", "0_z.up.sql"])
    assert catalogue.versions == [0, 1, 9, 10]


def test_up_and_down_may_have_different_names() -> None:
    (pair,) = arrange(["1_new.up.sql", "001_old.down.sql"]).pairs
    assert (pair.title, pair.up and pair.up.name, pair.down and pair.down.name) == (
        "new",
        "1_new.up.sql",
        "001_old.down.sql",
    )


@pytest.mark.parametrize(
    ("names", "kind", "file", "severity"),
    [
        (["1_a.up.sql", "001_b.up.sql"], "duplicate", "1_a.up.sql", Severity.ERROR),
        (["1_a.up.sql", "1_a.up.sql.bak"], "duplicate", "1_a.up.sql.bak", Severity.ERROR),
        (["1_a.up.sql.bak"], "extension", "1_a.up.sql.bak", Severity.REFUSAL),
        (["1_a.up.sql~"], "extension", "1_a.up.sql~", Severity.REFUSAL),
        (["3_x.sql"], "name", "3_x.sql", Severity.REFUSAL),
        (["003-x.up.sql"], "name", "003-x.up.sql", Severity.REFUSAL),
        (["003_x.UP.sql"], "name", "003_x.UP.sql", Severity.REFUSAL),
        (["003_x.up"], "name", "003_x.up", Severity.REFUSAL),
        (["V3__x.sql"], "name", "V3__x.sql", Severity.REFUSAL),
        (["٣_x.up.sql"], "name", "٣_x.up.sql", Severity.REFUSAL),
        (["9223372036854775808_x.up.sql"], "version", "9223372036854775808_x.up.sql", Severity.ERROR),
    ],
)
def test_refuses_names_that_golang_migrate_gets_wrong(
    names: list[str], kind: str, file: str, severity: Severity
) -> None:
    problems = arrange(names).problems
    assert [(p.kind, p.file, p.severity) for p in problems if p.kind == kind] == [(kind, file, severity)]


def test_other_files_are_ignored() -> None:
    names = ["README.md", "seed.sql", ".001_a.up.sql.swp", "notes.txt", "Makefile", "1_a.up.sql", "1_a.down.sql"]
    catalogue = arrange(names)
    assert (catalogue.versions, catalogue.problems) == ([1], ())


def test_the_largest_version_fits() -> None:
    assert arrange(["9223372036854775807_x.up.sql"]).problems == ()


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 5),
    st.from_regex(r"[^\n./\0]*", fullmatch=True),
    st.sampled_from(["up", "down"]),
)
def test_any_name_made_by_the_rule_is_read_back(version: int, zeros: int, title: str, direction: str) -> None:
    name = f"{'0' * zeros}{version}_{title}.{direction}.sql"
    assert parse(name) == File(name, version, title, direction, "sql")  # type: ignore[arg-type]


@given(st.text())
def test_parser_accepts_any_name_and_versions_lead(name: str) -> None:
    file = parse(name)
    assert file is None or re.match(r"[0-9]+_", name)


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["up", "down"])), max_size=20))
def test_every_half_is_kept_once_or_is_a_duplicate(halves: list[tuple[int, str]]) -> None:
    names = [f"{version}_n{number}.{direction}.sql" for number, (version, direction) in enumerate(halves)]
    catalogue = arrange(names)
    kept = [half.name for pair in catalogue.pairs for half in (pair.up, pair.down) if half]
    duplicates = [problem.file for problem in catalogue.problems if problem.kind == "duplicate"]
    assert sorted(kept + duplicates) == sorted(names)
    assert catalogue.versions == sorted({version for version, _ in halves})


def inspect(body: bytes, *cuts: int) -> Content:
    inspector = Inspector("1_a.up.sql")
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in pairwise(edges):
        inspector.feed(body[start:end])
    return inspector.content()


def test_the_checksum_is_what_sha256sum_prints() -> None:
    assert inspect(b"SELECT 1;\n").checksum == "b4e0497804e46e0a0b0b8c31975b062152d551bac49c3c2e80932567b4085dcd"
    assert inspect(b"").checksum == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        (b"SELECT 1;\n", []),
        (b"SELECT 1;\0DROP TABLE a;", ["nul"]),
        (b"\xef\xbb\xbfSELECT 1;", ["bom"]),
        (b"SELECT '\xef\xbb\xbf';", []),
        (b"SELECT 'gr\xf6\xdfe';", ["encoding"]),
        ("SELECT 'größe 表';".encode(), []),
        (b"SELECT 'cut \xc3", ["encoding"]),
        (b"SELECT 1;\r\n", ["crlf"]),
        (b"SELECT 1;\r", []),
    ],
)
@given(cuts=st.lists(st.integers(0, 40), max_size=4))
def test_chunk_size_does_not_affect_the_result(body: bytes, kinds: list[str], cuts: list[int]) -> None:
    assert [problem.kind for problem in inspect(body, *cuts).problems] == kinds
    assert inspect(body, *cuts).checksum == inspect(body).checksum


def test_a_nul_byte_is_refused_even_when_compatible() -> None:
    assert [p.severity for p in inspect(b"a\0").problems] == [Severity.ERROR]
