"""No name is quoted by hand: SQL is composed with psycopg.sql, and other targets have one function each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.contract.repository import ROOT

MODULES = sorted(path for folder in ("provision", "plugins") for path in (ROOT / folder).rglob("*.py"))
SQL = re.compile(r"\b(SELECT|FROM|DATABASE|ROLE|EXTENSION|TABLE|INDEX|SCHEMA|LOAD|OWNED BY|GRANT|REVOKE)\b")
CONNINFO = re.compile(r"(?<![-\w])(dbname|user)=\0")
CONSTANTS = {"hardening.py": 1, "schema.py": 1, "place.py": 1}
"""Queries whose quoted part is a constant of their own module, by file."""
DESCRIPTIONS = {"database.py": 1, "verify.py": 1, "host_repository.py": 1}
"""Texts that libpq does not read: messages that name a session, and the connection specification of sshd -T."""


def found(path: Path, pattern: re.Pattern[str], quoted: bool) -> list[str]:
    """Give the f-strings of a module that match, with \\0 for each value; `quoted`: a quote is before a value."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(each.value) if isinstance(each, ast.Constant) else "\0" for each in node.values)
            if pattern.search(text) and (not quoted or re.search("[\"']\0", text)):
                texts.append(text)
    return texts


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sql_has_quotes_around_a_value(path: Path) -> None:
    assert len(found(path, SQL, quoted=True)) <= CONSTANTS.get(path.name, 0)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_connection_string_is_glued(path: Path) -> None:
    assert len(found(path, CONNINFO, quoted=False)) <= DESCRIPTIONS.get(path.name, 0)


def test_no_template_glues_a_connection_string() -> None:
    names = [*(ROOT / "templates").glob("*/*.j2"), *(ROOT / "roles").glob("*/vars/*.yml")]
    glued = re.compile(r"(?<![-\w])(dbname|user)='? *(~|\{\{)(?![^}]*minion\.provision\.quoted)")
    assert [str(path) for path in names if glued.search(path.read_text())] == []
    assert len(names) > 40


def test_what_is_banned_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("""f'DROP DATABASE "{name}"'\nf"host={host} dbname={name}"\nf"SELECT '{name}'"\n""")
    assert len(found(module, SQL, quoted=True)) == 2
    assert len(found(module, CONNINFO, quoted=False)) == 1
