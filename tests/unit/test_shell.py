"""Man pages and completion: what is installed, what is removed, and that shells accept it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from provision.cli import root
from provision.host import shell
from tests.contract import manuals
from tests.contract.repository import ROOT

PROGRAM = Path(sys.executable).with_name("provision")


def test_every_command_has_a_man_page_that_is_up_to_date() -> None:
    there = {path.name: path.read_text() for path in manuals.FOLDER.glob("*.1")}
    assert there == manuals.pages(), "run: make docs"
    assert {"provision.1", "provision-migrate.1", "provision-migrate-up.1", "provision-queries.1"} <= set(there)


def test_man_page_names_the_command_its_options_and_subcommands() -> None:
    page = (manuals.FOLDER / "provision-migrate.1").read_text()
    assert "\\- Apply and check" in page or "\\-" in page.splitlines()[2]
    assert "\\fBup\\fP" in page
    assert "--yes-destroy" in (manuals.FOLDER / "provision-migrate-drop.1").read_text().replace("\\-", "-")


def test_host_has_no_pages_of_the_controllers_commands() -> None:
    found = set(shell.pages(["migrate", "queries"]))
    assert "provision.1" in found
    assert "provision-migrate-up.1" in found
    assert not any("sandbox" in name for name in found)


def test_install_writes_pages_and_completions_once_and_removes_old_pages(tmp_path: Path) -> None:
    (tmp_path / shell.MAN).mkdir(parents=True)
    (tmp_path / shell.MAN / "provision-gone.1").write_text("old")
    (tmp_path / shell.MAN / "other.1").write_text("of another program")
    first = CliRunner().invoke(root, ["shell", "install", "--prefix", str(tmp_path)])
    assert first.exit_code == 0, first.output
    assert f"changed {tmp_path / shell.MAN}/provision-migrate-up.1\n" in first.output
    assert not (tmp_path / shell.MAN / "provision-gone.1").exists()
    assert (tmp_path / shell.MAN / "other.1").exists()
    for path in shell.COMPLETIONS.values():
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o644
    again = CliRunner().invoke(root, ["shell", "install", "--prefix", str(tmp_path)])
    assert again.output == "no change\n"


def test_bash_completes_commands_options_and_choices() -> None:
    script = CliRunner().invoke(root, ["shell", "completion", "bash"]).stdout
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for words, expected in (
        ("provision mig", {"migrate"}),
        ("provision migrate do", {"down"}),
        ("provision queries --by t", {"total", "temp"}),
        ("provision connect --vault", {"--vault-password-file"}),
    ):
        given = {"_PROVISION_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        environment = {**os.environ, **given}
        done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
        found = {line.partition(",")[2] for line in done.stdout.splitlines()}
        assert found == expected, (words, done.stderr)
