"""A run of a playbook that does nothing fails and says so: no host, no inventory, a tag that no task has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAYBOOKS = ["site.yml", "backup.yml", "restore.yml", "drill.yml"]
HOSTS = "all: {children: {database: {hosts: {db1: {ansible_connection: local}}}}}\n"


def play(playbook: str, *words: str | Path) -> tuple[int, str]:
    program = Path(sys.executable).with_name("ansible-playbook")
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "300"}
    done = subprocess.run(
        [str(program), playbook, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_tag_that_no_task_has_is_refused_with_the_nearest(playbook: str, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    code, said = play(playbook, "-i", tmp_path / "hosts.yml", "--tags", "postgres", "--limit", "db1")
    assert code != 0
    assert "No task has the tag postgres, so nothing was done. Did you mean postgresql? The tags are adopt," in said


@pytest.mark.parametrize("option", ["--tags", "--skip-tags"])
def test_one_wrong_tag_among_others_is_refused(option: str, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    code, said = play("site.yml", "-i", tmp_path / "hosts.yml", option, "backup,pgbounce")
    assert (code, "No task has the tag pgbounce" in said) == (2, True)
    assert "Did you mean pgbouncer?" in said


def test_no_inventory_is_refused_with_the_inventories_of_this_project() -> None:
    code, said = play("site.yml")
    assert code == 2
    assert "has no hosts, so there is nothing to do." in said
    assert "name another inventory with -i" in said


def test_no_inventory_and_a_limit_are_refused() -> None:
    code, said = play("site.yml", "--limit", "db1")
    assert code == 1
    assert "Could not match supplied host pattern, ignoring: db1" in said


def test_an_inventory_without_the_group_backup_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    code, said = play("site.yml", "-i", tmp_path / "hosts.yml", "--list-hosts")
    assert code == 0, said
    assert "pattern: ['~^(database|dcs)$'] hosts (1): db1" in said
