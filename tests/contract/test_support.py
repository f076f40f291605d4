"""What the README says was tested is what the last run of the matrix noted, and nothing else."""

from __future__ import annotations

from tests.contract.repository import ROOT
from tests.contract.support import BEGIN, END, SYSTEMS, noted, table, with_table

ROW = {
    "system": "Debian 13", "architecture": "amd64", "profile": "dev", "packages_from": "distribution",
    "packager": "Debian PostgreSQL Maintainers <nobody@example.com>", "postgresql": "17.6", "pgvector": "0.8.0",
    "pgvector_from": "package", "date": "2026-01-02", "result": "tested", "allowed": "",
}  # fmt: skip


def test_readme_has_the_table_that_the_notes_make() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == with_table(text, noted()), "run: make docs"


def test_table_tells_what_was_tested_when_and_what_was_not() -> None:
    lines = table([ROW]).splitlines()
    assert "| Debian 13 (amd64) | 17.6 | 0.8.0 (package) | the distribution | tested 2026-01-02 | not tested |" in lines
    assert "| Debian 12 | 14 | | | not tested | not tested |" in lines
    assert "| Ubuntu 24.04 | any | | | not tested | not tested |" in lines
    assert "| any system, packages from PGDG itself | any | | | not tested | not tested |" in lines
    assert "| any system on arm64 | any | | | not tested | not tested |" in lines


def test_table_does_not_hide_a_failure() -> None:
    assert "| failed 2026-01-02 | not tested |" in table([{**ROW, "result": "failed"}])


def test_table_says_what_had_to_be_allowed_and_who_made_the_packages_of_a_mirror() -> None:
    allowed = {**ROW, "profile": "prod", "allowed": "backup_allow_local_only"}
    assert "| not tested | tested 2026-01-02, with `backup_allow_local_only` |" in table([allowed])
    mirrored = {**ROW, "packages_from": "mirror", "packager": "somebody else <nobody@example.com>"}
    assert "| a mirror laid out as PGDG's; packages by somebody else | tested 2026-01-02 |" in table([mirrored])


def test_notes_are_whole_and_each_combination_is_there_once() -> None:
    rows = noted()
    assert rows
    assert {tuple(row) for row in rows} == {tuple(ROW)}
    assert {row["result"] for row in rows} <= {"tested", "failed"}
    assert {row["system"] for row in rows} <= set(SYSTEMS)
    places = [(row["system"], row["packages_from"], row["postgresql"].split(".")[0], row["profile"]) for row in rows]
    assert len(places) == len(set(places))
