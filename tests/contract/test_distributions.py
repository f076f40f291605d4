"""A distribution is described in one file: no other file of the product names a release by its code name."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

from provision.distributions import DISTRIBUTIONS
from tests.contract.repository import ROOT

TABLE = ROOT / "provision/distributions.py"
FILES = [
    *(path for path in sorted((ROOT / "provision").rglob("*")) if path.suffix in (".py", ".j2") and path != TABLE),
    ROOT / "Vagrantfile",
    ROOT / "Makefile",
]
CODENAMES = re.compile("|".join(each.codename for each in DISTRIBUTIONS))


def code(path: Path) -> str:
    """Return a file's text without comments; Python's docstrings go too."""
    text = path.read_text()
    if path.suffix != ".py":
        return "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines())
    kept, previous = [], tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        opens_statement = previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        if not (token.type == tokenize.STRING and opens_statement):
            kept.append(token.string)
        previous = token.type
    return " ".join(kept)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_table_names_a_release(path: Path) -> None:
    assert CODENAMES.findall(code(path)) == []


def test_comments_and_docstrings_may_name_a_release_but_code_may_not(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""trixie"""\n# bookworm\nsuites = ("sid", "trixie")\n')
    assert CODENAMES.findall(code(module)) == ["trixie"]
    module.write_text('def f() -> str:\n    """noble"""\n    return f"noble-pgdg"  # noble\n')
    assert CODENAMES.findall(code(module)) == ["noble"]
