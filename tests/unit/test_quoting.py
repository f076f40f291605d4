"""What a function quotes, its target reads back as it was. Parsers of the targets are used where they are at hand."""

from __future__ import annotations

import json
import shlex
from urllib.parse import unquote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from provision import quoting

TEXTS = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=70)
LINES = st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=70)


@given(TEXTS.filter(bool), TEXTS.filter(bool))
def test_libpq_reads_what_conninfo_writes(database: str, user: str) -> None:
    written = quoting.conninfo({"host": "/run/x y", "port": 5432, "dbname": database, "user": user, "password": None})
    assert conninfo_to_dict(written) == {"host": "/run/x y", "port": "5432", "dbname": database, "user": user}


@given(TEXTS.filter(bool), TEXTS.filter(bool))
def test_libpq_reads_the_parts_of_a_url(database: str, user: str) -> None:
    assert unquote(quoting.url(database)) == database
    read = conninfo_to_dict(f"postgresql://{quoting.url(user)}@localhost:5432/{quoting.url(database)}")
    assert (read["user"], read["dbname"]) == (user, database)


@given(LINES.filter(str.isprintable))
def test_yaml_and_extra_variables_are_read_back(text: str) -> None:
    assert yaml.safe_load(f"{quoting.yaml('key')}: {quoting.yaml(text)}") == {"key": text}
    words = shlex.split(quoting.extra_vars(restore_confirm=text))
    assert words[0] == "-e"
    assert (json.loads(words[1]) if words[1].startswith("{") else dict([words[1].split("=", 1)])) == {
        "restore_confirm": text
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("minion", "minion"),
        ("jan.kowalski-2", "jan.kowalski-2"),
        ("all", "all"),
        ("+readers", "+readers"),
        ("+Sales Readers", '+"Sales Readers"'),
        ("/^(a|b)$", "/^(a|b)$"),
        ("/^a b$", '"/^a b$"'),
        ("Sales Data", '"Sales Data"'),
        ("O'Brien", '"O\'Brien"'),
        ("@file", '"@file"'),
        ("", '""'),
    ],
)
def test_access_rules_keep_keywords_and_quote_the_rest(text: str, expected: str) -> None:
    assert quoting.hba(text) == expected


def test_a_name_in_access_rules_is_never_a_keyword() -> None:
    assert [quoting.hba_name(text) for text in ("all", "+a", "replication", "a")] == [
        '"all"',
        '"+a"',
        '"replication"',
        "a",
    ]


def test_each_target_has_its_own_escapes() -> None:
    text = """a'b"c\\d%e"""
    assert quoting.pgbouncer_value(text) == """'a''b"c\\d%e'"""
    assert quoting.pgbouncer_auth(text) == """"a'b""c\\d%e\""""
    assert quoting.postgresql_conf(text) == """'a''b"c\\\\d%e'"""
    assert quoting.systemd(text) == """"a'b\\"c\\\\d%%e\""""
    assert quoting.prometheus_label('a\nb"c\\') == r'"a\nb\"c\\"'


@pytest.mark.parametrize("target", [name for name in quoting.TARGETS if name != "yaml"])
@pytest.mark.parametrize("text", ["a\nb", "a\0b", "a\rb", "\x7f"])
def test_a_control_character_is_refused(target: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"control character|cannot be a key"):
        quoting.TARGETS[target](text)


@pytest.mark.parametrize("text", ["", " a", "a "])
def test_pgbackrest_cannot_hold_spaces_at_the_ends(text: str) -> None:
    with pytest.raises(ValueError, match="spaces at its ends"):
        quoting.pgbackrest(text)
