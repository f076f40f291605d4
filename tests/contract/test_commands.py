"""Every command of a page exists, with these options: `provision`, and ansible-playbook with its tags and variables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest
from ansible.cli.playbook import PlaybookCLI

from plugins.action.require_hosts import GENERAL, known_tags
from provision.cli import root
from provision.controller import inputs
from provision.plan import variables
from tests.contract.repository import ROOT

PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *ROOT.glob("docs/*.md"),
                *ROOT.glob("roles/*/README.md")})  # fmt: skip
OPERATORS = re.compile(r"^(&&|\|\||;|\||&|\(|\))$")
PLACEHOLDER = re.compile(r"[A-Z_]{2,}[.]*|\[.*|\.\.\.")
"""HOST, [OPTIONS] and ... stand for what the reader gives."""
YOURS = ("playbook.yml",)
"""Playbooks of the reader, in docs/use-the-roles-alone.md."""
OF_ANSIBLE = ("ansible_", "vault_")
"""Variables of Ansible itself, and of the reader's vault."""


def spans(page: Path) -> Iterator[str]:
    """Yield each command line of a page's code blocks, and each span of code in its text."""
    text = page.read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from re.findall(r"`([^`]+)`", text.replace("\n", " "))


def calls(line: str, program: str) -> Iterator[list[str]]:
    """Yield the words after `program` of each call in a line, up to the next operator of the shell."""
    lexer = shlex.shlex(re.sub(r"<\w+>", "NAME", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a sentence with an apostrophe, or a line of output
        return
    for at, word in enumerate(words):
        follows = "".join(words[at + 1 : at + 2])
        if word.endswith("/") or follows[:1].isdigit():  # the folder, and a version in an output
            continue
        if Path(word).name == program and (at == 0 or words[at - 1] in WRAPPERS or OPERATORS.match(words[at - 1])):
            end = next((n for n in range(at + 1, len(words)) if OPERATORS.match(words[n])), len(words))
            yield words[at + 1 : end]


WRAPPERS = ("--", "sudo", "nice", "time", "COMMAND:", "run:", "next:")
"""Words before a program that run it."""


def problem(words: list[str]) -> str:
    """Return what is wrong with a call of `provision`; "" for one that exists."""
    command: click.Command = root
    context = click.Context(root, info_name="provision")
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--" or PLACEHOLDER.fullmatch(word):
            return ""
        if word.startswith("-") and len(word) > 1 and not word[1:].isdigit():
            name, given, _ = word.partition("=")
            known = {opt: each for each in command.get_params(context) for opt in (*each.opts, *each.secondary_opts)}
            if name not in known:
                return f"{context.command_path} has no option {name}"
            option = known[name]
            takes = isinstance(option, click.Option) and not option.is_flag and not option.count
            if takes and not given and rest:
                rest.pop(0)
            continue
        if isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is None:
                return f"{context.command_path} has no command {word}"
            command, context = found, click.Context(found, context, word)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    found = [words for line in spans(page) for words in calls(line, "provision")]
    assert [f"provision {' '.join(words)}: {said}" for words in found if (said := problem(words))] == []


def known_variables() -> set[str]:
    return {*inputs.specifications(), *inputs.PUBLISHED, *variables.RENAMED}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_playbook_calls_of_a_page_have_known_tags_and_variables(page: Path) -> None:
    names, tags = known_variables(), known_tags(ROOT) | GENERAL
    for line in spans(page):
        for words in calls(line, "ansible-playbook"):
            if not words:  # the program's name in a sentence
                continue
            parser = PlaybookCLI(["ansible-playbook", *words])
            parser.init_parser()
            try:
                given = parser.parser.parse_args(words)
            except SystemExit:
                pytest.fail(f"ansible-playbook rejects: {' '.join(words)}")
            for name in given.args:
                assert (ROOT / name).is_file() or name in YOURS, line
            for name in ",".join([*given.tags, *given.skip_tags]).split(","):
                assert name in ("", *tags), line
            for text in given.extra_vars:
                with suppress(ValueError):
                    for each in shlex.split(text):
                        name = each.partition("=")[0]
                        if not each.startswith(("@", "{")) and not name.startswith(OF_ANSIBLE):
                            assert name in names, line


def test_wrong_commands_are_found() -> None:
    """The checks above can fail: a wrong command, option, and one behind an operator."""
    (first,) = calls("cd x && .venv/bin/provision backup tke", "provision")
    assert problem(first) == "provision backup has no command tke"
    second, third = calls("provision sandbox exec db1 -- provision backup take --tpye full", "provision")
    assert problem(second) == ""
    assert problem(third) == "provision backup take has no option --tpye"
    assert problem(["backup", "take", "--type", "full"]) == ""


def test_pages_have_commands() -> None:
    found = sum(1 for page in PAGES for line in spans(page) for _ in calls(line, "provision"))
    played = sum(1 for page in PAGES for line in spans(page) for _ in calls(line, "ansible-playbook"))
    assert (found > 200, played > 40) == (True, True), (found, played)


def test_commands_named_in_messages_exist() -> None:
    """The next command of errors, and the fixes of checks; values in braces are filled in."""
    wrong, count = [], 0
    for path in [*(ROOT / "provision").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for text in re.findall(r'\b(?:run|fix)=f?"(provision [a-z][^"\n]*)"', path.read_text()):
            for words in calls(re.sub(r"\{[^}]*\}", "VALUE", text).replace("'", "").rstrip("."), "provision"):
                said = problem([word.rstrip(",;:") for word in words][:6])
                count += 1
                wrong += [f"{path.relative_to(ROOT)}: {text}: {said}"] if said else []
    assert count > 40
    assert wrong == []
