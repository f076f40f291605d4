"""The repository speaks of the project alone, and its texts say what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract import site
from tests.contract.repository import ROOT


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def text(name: str) -> str:
    return (ROOT / name).read_text(errors="replace")


def test_registries_are_named_nowhere() -> None:
    # Written in pieces, so that this file does not name them either.
    hosts = (
        "deb." + "debian.org",
        "security." + "debian.org",
        "pypi." + "org",
        "pythonhosted." + "org",
        "npmjs." + "org",
    )
    found = {f"{name}: {host}" for name in tracked() for host in hosts if host in text(name)}
    assert found == set()


def test_public_defaults_are_written_once() -> None:
    for host in (
        "apt.postgresql" + ".org/pub",
        "apt-archive.postgresql" + ".org/pub",
        "github.com/pgvector" + "/pgvector/archive",
    ):
        places = {name for name in tracked() if host in text(name)}
        assert len(places - {name for name in places if name.endswith(("README.md", "argument_specs.yml"))}) == 1, host


@pytest.mark.parametrize("page", [name for name in tracked() if name.endswith(".md")])
def test_links_and_pages_exist(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text(page))
    named = re.findall(r"(?<![\w/])docs/[\w-]+\.md", text(page))
    assert [link for link in links if not (folder / link).exists()] == []
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_table_of_pages() -> None:
    listed = {page for rows in site.sections().values() for _, page in rows}
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_links_of_the_site_name_its_pages() -> None:
    pages = site.pages()
    names = {*pages, *(path.name for path in (ROOT / "docs").glob("*.*") if path.suffix in {".svg", ".png"})}
    for name, page in pages.items():
        page = re.sub(r"^```.*?^```|`[^`\n]+`", "", page, flags=re.M | re.S)
        links = set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page))
        assert links <= names, name


@pytest.mark.parametrize("page", [name for name in tracked() if name.endswith(".md") and name != "CHANGELOG.md"])
def test_pages_named_in_running_text_are_links(page: str) -> None:
    running = re.sub(r"^```.*?^```|`[^`]+`", "", text(page), flags=re.M | re.S)
    assert re.findall(r"(?<!\]\()(?<!\[)(?<![\w/])(?:docs/[\w-]+|roles/\w+/README)\.md", running) == []


def test_pages_named_in_messages_exist() -> None:
    sources = [name for name in tracked() if name.startswith(("provision/", "roles/", "plugins/", "site"))]
    named = {page for name in sources for page in re.findall(r"docs/[\w-]+\.md", text(name))}
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).exists()] == []


def test_readme_commands_exist_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", text("Makefile"), re.M))
    for name in [name for name in tracked() if name.endswith(".md")]:
        assert set(re.findall(r"`make ([a-z0-9-]+)", text(name))) <= targets, name
        blocks = "\n".join(re.findall(r"^```.*?^```", text(name), re.M | re.S))
        assert set(re.findall(r"^make ([a-z0-9-]+)", blocks, re.M)) <= targets, name


def test_page_of_vagrant_names_every_variable_that_the_vagrantfile_reads() -> None:
    vagrantfile, page = text("Vagrantfile"), text("docs/vagrant.md")
    read = {f"MINION_{name.upper()}" for name in re.findall(r'choice\["(\w+)"', vagrantfile)}
    read |= set(re.findall(r'ENV.fetch\("(MINION_\w+)"', vagrantfile))
    assert read == set(re.findall(r"`(MINION_[A-Z]+)", page))
    assert read == set(re.findall(r"(MINION_[A-Z]+)=", vagrantfile.partition("require")[0]))


def test_help_lists_every_public_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    documented = re.findall(r"^([a-z0-9-]+):.*## ", text("Makefile"), re.M)
    assert all(f"make {target} " in shown for target in documented)
    assert {"up", "down", "test", "psql", "status", "migrate-up", "migrate-down", "lint"} <= set(documented)


def test_every_playbook_has_a_header_with_its_command_line_downtime_and_undo() -> None:
    for playbook in sorted(set(ROOT.glob("*.yml")) - {ROOT / "galaxy.yml"}):
        head = playbook.read_text()[:600]
        assert all(word in head for word in ("# Run:", "# Downtime:", "# Undo:")), playbook


def test_constraints_pin_every_package_by_version_alone() -> None:
    lines = [line for line in text("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[\w.+!]+", line)] == []


@pytest.mark.parametrize("playbook", ["site.yml", "backup.yml", "drill.yml", "restore.yml"])
def test_an_inventory_that_is_not_there_is_no_success(playbook: str) -> None:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), playbook, "-i", "inventories/nope"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "inventories/nope" in done.stderr
