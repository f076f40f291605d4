"""Every shell text that the project ships passes shellcheck; an exception stands in the text, with its reason."""

from __future__ import annotations

import re
import subprocess

import pytest

from plugins.module_utils import repository_command
from provision.controller import image
from provision.controller.mirror import Mirror
from tests.contract.repository import ROOT

MIRROR = Mirror("http://mirror.example/debian", "", has_updates=False, apt_options=())
TEXTS = {
    **{str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / ".ci").iterdir())},
    "the command of a key on the backup host": repository_command.COMMAND,
    "the build of the sandbox image": f"#!/bin/sh\n{image.build_script('localhost/image:1', MIRROR, 'trixie')}",
    **{f"hook of the sandbox image: {hook[:40]}": f"#!/bin/sh\n{hook}\n" for hook in image.HOOKS},
}
UNIT_SHELL = re.compile(r"^Exec\w+=\S*/(?:ba)?sh -e?u?c '(.*)'$", re.MULTILINE)


def shellcheck(text: str) -> str:
    """Return what shellcheck says of a script, whose first line names the shell."""
    done = subprocess.run(["shellcheck", "--norc", "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.parametrize("name", TEXTS)
def test_shipped_shell_passes_shellcheck(name: str) -> None:
    assert shellcheck(TEXTS[name]) == ""


def test_shellcheck_sees_an_unquoted_word() -> None:
    assert "SC2086" in shellcheck("#!/bin/sh\nrm $1\n")


def test_units_start_a_shell_only_where_it_is_checked() -> None:
    units = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "templates").glob("*/*.j2")}
    units["the key of a sandbox host"] = image.HOST_KEY_UNIT
    shells = {name: UNIT_SHELL.findall(text) for name, text in units.items() if re.search(r"\bsh -", text)}
    assert list(shells) == ["the key of a sandbox host"]
    for scripts in shells.values():
        assert [shellcheck(f"#!/bin/sh\n{script}\n") for script in scripts] == [""] * len(scripts)
        assert scripts
