"""What a host says reaches the controller's terminal without control characters, whoever chose the names in it.

Attacks: an owner names a table with a terminal's escape sequence and a forged line, which `provision access` lists as a
change; a user of a host starts a process on our port whose arguments do the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugins.action import host_plan
from tests import plans
from tests.contract.repository import ROOT

EVIL = "\x1b]0;owned\x07\x1b[2Kx\u202e\nok: [db1] all is well"
SHOWN = r"\x1b]0;owned\x07\x1b[2Kx\u202e\nok: [db1] all is well"


def run(folder: Path, *tasks: dict[str, Any]) -> str:
    """Run tasks on this machine with the collection of this checkout; give all that reaches the terminal."""
    collection = folder / "ansible_collections" / "minion" / "provision"
    collection.parent.mkdir(parents=True)
    collection.symlink_to(ROOT)
    (folder / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]))
    (folder / "ansible.cfg").touch()
    environment = {**os.environ, "ANSIBLE_CONFIG": str(folder / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(folder)}
    program = Path(sys.executable).with_name("ansible-playbook")
    words = [program, "-i", "localhost,", "-c", "local", "--diff", "-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(
        [*map(str, words), str(folder / "play.yml")], capture_output=True, text=True, check=False, env=environment
    )
    return done.stdout + done.stderr


def says(**facts: Any) -> list[str]:
    """Return a command that prints a JSON object, as every command of a host does."""
    return [sys.executable, "-c", f"print({json.dumps(facts)!r})"]


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("ok: [db1]")]


@pytest.mark.parametrize("kind", ["changes", "warnings"])
def test_changes_and_warnings_of_a_host_are_one_printable_line_each(tmp_path: Path, kind: str) -> None:
    argv = says(changed=True, **{kind: [f"table {EVIL}: SELECT for minion_app"]})
    shown = run(tmp_path, {"minion.provision.host_command": {"argv": argv}})
    assert "\x1b" not in shown.replace("\x1b[0m", "")
    assert "\u202e" not in shown
    assert lines_of(shown) == []
    assert "table \\x1b]0;owned" in shown


def test_failure_of_a_command_is_printable(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", f"import sys; sys.exit({('role ' + EVIL)!r})"]
    shown = run(tmp_path, {"minion.provision.host_command": {"argv": argv}})
    assert "role " in shown
    assert "\x1b]0" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def test_difference_of_a_file_is_printable(tmp_path: Path) -> None:
    """The old content of a file is its owner's: postgres may write what root's run then shows."""
    path = tmp_path / "old"
    path.write_text(f"# {EVIL}\n")
    owner = {"owner": "root", "group": "root", "path": str(path), "content": "new\n"}
    task = {"minion.provision.host_files": {"name": "terminal", "files": [owner]}, "check_mode": True}
    shown = run(tmp_path, task)
    assert "all is well" in shown
    assert "\x1b]0" not in shown
    assert "\u202e" not in shown


def test_process_on_our_port_forges_no_line_of_a_refusal() -> None:
    row = {"port": 6432, "address": "127.0.0.1", "pid": 7, "command": f"nc {EVIL}", "unit": "", "units": []}
    probe = {**plans.PROBE, "listeners": [row]}
    found = plans.built("prod", {}, probe)
    refusals = [text for text in found.problems if "6432 is taken" in text]
    assert len(refusals) == 1
    said = host_plan.ActionModule._refused(None, refusals)  # type: ignore[arg-type]
    assert said["msg"].splitlines() == [
        "nothing was changed on this host:",
        "- " + refusals[0].replace(EVIL, SHOWN),
    ]
