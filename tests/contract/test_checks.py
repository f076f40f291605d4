"""The registry of checks is complete, unambiguous and documented, also inside the command packed for hosts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from provision.checks import registry
from provision.checks.registry import Scope
from provision.controller import archive
from tests.contract.checks import BEGIN, END, PAGE, with_table
from tests.contract.repository import ROOT
from tests.system import damages

CHECKS = registry.every()
PROGRAMS = {
    "ansible", "ansible-playbook", "apt-get", "getent", "journalctl", "openssl", "provision", "runuser", "systemctl",
    "timeout",
    "{statement}",
}  # fmt: skip
"""What a fix begins with; {statement} is filled in with the message of a failed connection."""
HEAD = "import json, sys; sys.path.insert(0, sys.argv[1]); from provision.checks import registry; "
NAMES = "print(json.dumps([registry.__file__, *(each.id for each in registry.every())]))"


def test_page_has_the_table_of_the_registry() -> None:
    page = PAGE.read_text()
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == with_table(page), "run: make docs"


def test_checks_load_on_a_host_without_cryptography() -> None:
    """A host without TLS does not have python3-cryptography."""
    absent = f"import sys; sys.modules['cryptography'] = None; {HEAD}{NAMES}"
    done = subprocess.run([sys.executable, "-c", absent, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(CHECKS) + 1


def test_refuses_two_checks_with_one_id() -> None:
    with pytest.raises(ValueError, match="two checks have the id disk"):
        registry.check("disk", area="host", expected="space", why="the server stops")


def test_every_function_belongs_to_a_check_and_every_check_has_one() -> None:
    looks = [(each.id, scope) for scope in Scope for each, _ in registry.of(scope)]
    assert {id_ for id_, _ in looks} == {each.id for each in CHECKS}
    assert [look for look, count in Counter(looks).items() if count > 1] == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_check_is_described_in_a_table_cell(check: registry.Check) -> None:
    texts = (check.area, check.expected, check.why)
    assert all(text and "\n" not in text and not text.endswith(".") for text in texts)


def test_packed_command_has_every_check(tmp_path: Path) -> None:
    packed, _ = archive.pack(ROOT / "provision", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", HEAD + NAMES, packed], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PYTHONPATH": ""},
    )  # fmt: skip
    assert json.loads(done.stdout) == [f"{packed}/provision/checks/registry.py", *(each.id for each in CHECKS)]


def test_no_check_names_an_inventory() -> None:
    sources = [*(ROOT / "provision/checks").glob("*.py"), ROOT / "provision/controller/audit.py"]
    assert [path.name for path in sources if "inventories/" in path.read_text()] == []


def test_every_fix_is_pasted_by_a_test_or_has_a_reason() -> None:
    pasted = {each.check for each in (*damages.DAMAGES, *damages.ALONE)} | set(damages.SHOWN)
    assert pasted | set(damages.UNTESTED) == {each.id for each in CHECKS}
    assert pasted & set(damages.UNTESTED) == set()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_fix_is_a_command_or_a_comment(check: registry.Check) -> None:
    fix = check.finding("seen", registry.unknown_site).fix
    done = subprocess.run(["sh", "-n", "-c", fix], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{fix}: {done.stderr}"
    first = "" if fix.startswith("#") else fix.split()[0]
    assert first in {"", *PROGRAMS}, fix


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_no_page_starts_a_unit_of_another_major(page: Path) -> None:
    assert re.findall(r"systemctl [\w-]+ postgresql@\d+", page.read_text()) == []


def test_no_page_runs_a_superuser_s_query_in_the_application_s_database() -> None:
    """A function of the owner with better matching arguments, or first in a stored search_path, would run with a
    superuser's rights (CVE-2018-1058). Shared catalogues are in the database postgres too; the rest is the owner's."""
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "roles").glob("*/README.md")]
    command = re.compile(r"(?:runuser|sudo) -u postgres (?:-- )?psql (?:(?!-U )[^\n|`;])*?(?:-d |-[XAtqc]* )minion\b")
    found = [f"{page.name}: {match[0]}" for page in pages for match in command.finditer(page.read_text())]
    assert found == []
    assert command.search("runuser -u postgres -- psql -d minion -c 'SELECT 1'")
    assert not command.search("runuser -u postgres -- psql -U minion -d minion -c 'SELECT 1'")
