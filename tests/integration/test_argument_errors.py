"""Wrong arguments of the command and of playbooks: one paragraph that names the argument and what is allowed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOISE = ("Traceback", "Origin:", "task path:", "FAILED! =>", "[ERROR]", "\\n")
"""What Ansible and Python print around a message."""


def ran(*words: str | Path) -> tuple[int, str]:
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "300", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "what", "allowed"),
    [
        ("bakup", "no such command 'bakup'", "backup"),
        ("backup tke", "no such command 'tke'", "take"),
        ("backup take --nope", "no such option '--nope'", "provision backup take [OPTIONS]"),
        ("backup take --type foo", "invalid value for '--type': 'foo' is not one of 'full', 'diff', 'incr', 'logical'",
         "full, diff, incr, logical"),
        ("backup take extra", "got unexpected extra argument (extra)", "provision backup take [OPTIONS]"),
        ("bench --vectors 5", "invalid value for '--vectors': 5 is not in the range x>=200", "200 or more"),
        ("bootstrap", "missing argument 'HOSTS...'", "provision bootstrap [OPTIONS] HOSTS..."),
        ("migrate goto abc", "invalid value for 'V': 'abc' is not a valid integer",
         "provision migrate goto [OPTIONS] V"),
        ("tune --memory abc", "invalid memory size", "such as 512MB or 64GB"),
        ("plan --inventory nowhere", "no such inventory", "a file or directory, such as inventories/prod"),
        ("logs --since never", "invalid time", 'an age (30m, 2h, 7d) or "2026-11-24 14:05"'),
        ("sandbox up --os nope", "unknown distribution", "debian12, debian13"),
    ],
)  # fmt: skip
def test_wrong_argument_of_the_command_is_one_paragraph(words: str, what: str, allowed: str) -> None:
    code, said = ran(sys.executable, "-c", "from provision.cli import main; main()", *words.split())
    assert code == 2, said
    first, *rows = said.rstrip("\n").split("\n")
    assert first.startswith(f"Error: {what}")
    assert all(re.match(r"  (where|seen|allowed|next): +\S", row) for row in rows), said
    assert f"  allowed: {allowed}" in rows


def test_option_without_its_value_is_one_paragraph() -> None:
    code, said = ran(sys.executable, "-c", "from provision.cli import main; main()", "backup", "take", "--type")
    assert (code, said) == (
        2, "Error: option '--type' requires an argument\n  next:    the same command with --help\n",
    )  # fmt: skip


@pytest.mark.parametrize("words", ["--help", "--version", "backup take --help"])
def test_help_is_no_error(words: str) -> None:
    code, said = ran(sys.executable, "-c", "from provision.cli import main; main()", *words.split())
    assert (code, "Error" in said) == (0, False)


@pytest.mark.parametrize(
    ("playbook", "variables", "refusals"),
    [
        ("site.yml", ["postgresql_verson=15", "postgresql_port=abc", "backup_retention_full=x"],
         ["backup_retention_full is 'x': expected an integer", "postgresql_port is 'abc': expected an integer",
          "unknown variable postgresql_verson: did you mean postgresql_version?"]),
        ("site.yml", ["plan_profile_name=staging"], ["plan_profile_name is 'staging': expected dev, prod"]),
        ("site.yml", ['{"backup_s3": {"buket": "b"}}'], ["backup_s3.buket: unknown key; did you mean bucket?"]),
        ("site.yml", ["tls_enabled=maybe", "postgresql_version"],
         ["tls_enabled is 'maybe': expected true or false",
          "-e 'postgresql_version' sets no variable: expected NAME=VALUE, JSON, or @ and the name of a file"]),
        ("restore.yml", ["restore_action=foo", "restore_timeline=x", "restore_repostory=2"],
         ["restore_timeline is 'x': expected an integer", "restore_action is 'foo': expected promote, pause",
          "unknown variable restore_repostory: did you mean restore_repository?"]),
        ("backup.yml", ["backup_type=ful"],
         ["backup_type is 'ful': expected empty, full, diff, incr, logical; did you mean full?"]),
        ("switchover.yml", ["switchover_too=db2"], ["unknown variable switchover_too: did you mean switchover_to?"]),
    ],
)  # fmt: skip
def test_wrong_variables_of_a_playbook_are_one_paragraph(
    playbook: str, variables: list[str], refusals: list[str], tmp_path: Path
) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {children: {database: {hosts: {db1: {ansible_connection: local}}}}}\n")
    program = Path(sys.executable).with_name("ansible-playbook")
    given = [f"-e{text}" for text in variables]
    code, said = ran(program, playbook, "-i", inventory, "--check", *given)
    assert code == 2, said
    paragraph = said.partition("fatal: [db1]: ")[2].partition("\n\n")[0].split("\n")
    assert paragraph[0] == "nothing was changed on this host:"
    assert [line.removeprefix("  - ") for line in paragraph[1:]][: len(refusals)] == refusals
    assert not any(word in said for word in NOISE), said


def test_failed_task_of_others_is_shown_as_ansible_does(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(
        "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - {name: Fail, ansible.builtin.command: 'false'}\n"
    )
    code, said = ran(Path(sys.executable).with_name("ansible-playbook"), tmp_path / "play.yml")
    assert code == 2
    assert "fatal: [localhost]: FAILED! =>" in said
