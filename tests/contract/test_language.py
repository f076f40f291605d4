"""Texts are plain technical English, as far as a test can hold it: a short list of phrases and two lengths."""

from __future__ import annotations

import ast
import re
import subprocess

import click
import pytest

from provision.cli import root
from tests.contract.repository import ROOT

FOLDERS = ("provision/", "plugins/", "roles/", "templates/", "profiles/", "docs/", "inventories/")
LONGEST_HELP = 100
BANNED = (
    r"\b(?:nobody|somebody|whoever|house-?keeping)\b",
    r"\bmend(?:s|ed|ing)?\b",
    r"\bdirect lane\b",
    r"Let other runs at this host again",
    r"Let the running server take",
    r"ask what waits for a restart",
    r"which settings wait for, between",
    r"Let those who serve",
    r"Know the repository's host",
    r"Refuse to call it proved",
    r"Make login roles, databases, extensions and privileges what is",
    r"this host does not know what it is",
    r"somebody may more, or less",
    r"rows travel in the clear",
    r"the data directory is, without a copy",
)
PATTERN = re.compile("|".join(BANNED), re.IGNORECASE)


def texts() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.splitlines() if name.startswith(FOLDERS) or "/" not in name]
    return [name for name in names if (ROOT / name).is_file() and name not in ("LICENSE", "CHANGELOG.md")]


def flat(name: str) -> str:
    """Join lines, without the signs of comments between them, so that a phrase is found across a line's end."""
    return re.sub(r"\s*\n\s*(?:#|--|//)?\s*", " ", (ROOT / name).read_text(errors="replace"))


@pytest.mark.parametrize("name", texts())
def test_text_has_no_banned_phrase(name: str) -> None:
    assert PATTERN.findall(flat(name)) == []


def test_banned_phrases_are_found_where_they_are() -> None:
    assert PATTERN.search("Nobody may")
    assert PATTERN.search("it mends")
    assert PATTERN.search("house-keeping")
    assert not PATTERN.search("recommended, amendment")
    assert len(texts()) > 300


def commands(command: click.Command, path: str = "provision") -> list[tuple[str, click.Command]]:
    """Give every command below one, with the words that call it."""
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner
            found += commands(inner, f"{path} {name}")
    return found


@pytest.mark.parametrize(("path", "command"), commands(root), ids=lambda each: each if isinstance(each, str) else "")
def test_help_is_one_short_sentence_first(path: str, command: click.Command) -> None:
    first = " ".join((command.help or "").split("\n\n")[0].split()).partition(". ")[0]
    assert first, path
    assert len(first) <= LONGEST_HELP
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    assert [each.name for each in options if not each.help] == []
    long = [each.name for each in options if len((each.help or "").partition(". ")[0]) > LONGEST_HELP]
    assert long == []


WITHOUT_JSON = {
    **dict.fromkeys(
        (
            "provision cluster pause",
            "provision cluster reinitialise",
            "provision cluster resume",
            "provision dcs remove",
            "provision dcs restart",
            "provision member restart",
            "provision dcs maintain",
        ),
        "prints one sentence; provision cluster status has --json",
    ),
    "provision cluster follow": "is a service",
    "provision own": "prints nothing",
    "provision sandbox exec": "runs another program",
    "provision sandbox url": "prints one value",
    "provision secrets rotate": "shows the run of ansible-playbook",
    "provision shell completion": "prints a script",
    "provision tune": "has --format json",
    "provision vagrant prepare": "prints JSON always",
}
"""Commands without --json, and why."""


def test_every_command_prints_json_on_request() -> None:
    without = set()
    for path, command in commands(root):
        group = isinstance(command, click.Group) and not command.invoke_without_command
        if not group and not any("--json" in option.opts for option in command.params):
            without.add(path)
    assert without == set(WITHOUT_JSON)


def test_docstrings_end_their_first_line() -> None:
    found = set()
    for name in texts():
        if name.startswith("provision/") and name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text())):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (said := ast.get_docstring(node)):
                    first = said.split("\n\n")[0]
                    found |= set() if first.rstrip().endswith((".", "?", ":")) else {f"{name}: {node.name}"}
    assert found == set()
