"""Python keeps the directions of knowledge: what may import what, and what a bare host can import."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

from provision.controller.archive import CONTROLLER
from tests.contract.repository import ROOT

PACKAGE = ROOT / "provision"
# A host has the distribution's psycopg, click and cryptography beside the standard library.
ON_A_HOST = set(sys.stdlib_module_names) | {"psycopg", "click", "cryptography", "provision"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
HOST_MODULES = [path for path in MODULES if not path.relative_to(PACKAGE).as_posix().startswith(CONTROLLER)]


def imports(path: Path, *, everywhere: bool) -> set[str]:
    """Names that a module imports: at its top level, or inside its functions too; not those for types alone."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
            module = f"{package}.{node.module}" if node.level else node.module
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", HOST_MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_on_a_bare_host(path: Path) -> None:
    assert {name.partition(".")[0] for name in imports(path, everywhere=False)} <= ON_A_HOST


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_what_asks_the_server_knows_psycopg(path: Path) -> None:
    allowed = ("database.py", "urls.py", "host", "checks", "cli")
    if path.relative_to(PACKAGE).parts[0] not in allowed:
        assert not any(name.partition(".")[0] == "psycopg" for name in imports(path, everywhere=True))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_privileged_sessions_are_pinned_to_the_catalogue(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix().startswith(("host/access", "host/backup", "host/metrics", "checks")):
        names = {name.id for name in ast.walk(ast.parse(path.read_text())) if isinstance(name, ast.Name)}
        assert "connect" not in names, "connect_pinned: these run as the superuser or read all"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_library_does_not_know_the_command_line(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] != "cli":
        names = imports(path, everywhere=True)
        assert not any(name.startswith(("provision.cli", "click", "tests", "benchmarks")) for name in names)


BASE = {"errors", "addresses", "compatibility", "distributions", "pins", "quoting", "secure_path", "system"}
LAYERS = {
    "errors": set(),
    "addresses": set(),
    "quoting": set(),
    "pins": set(),
    "distributions": {"errors"},
    "compatibility": {"errors", "distributions"},
    "secure_path": set(),
    "system": {"errors", "secure_path"},
    "urls": {"errors"},
    "database": {"errors", "pins", "quoting", "system", "urls"},
    "tuning": BASE,
    "plan": BASE | {"tuning"},
    "host": BASE | {"tuning", "plan", "database", "urls"},
    "checks": BASE | {"tuning", "plan", "database", "urls", "host"},
}
"""Which parts of the package a part may import, beside itself; controller/ and cli/ may import all of them."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in LAYERS:
        named = {name.split(".")[1] for name in imports(path, everywhere=True) if name.startswith("provision.")}
        parts = {name for name in named if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}
        assert parts <= LAYERS[part] | {part}


@pytest.mark.parametrize("path", HOST_MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_host_without_tls_needs_no_cryptography(path: Path) -> None:
    if path.name != "certificate_reader.py":
        assert not any(name.startswith(("cryptography", "provision.checks.certificate_reader"))
                       for name in imports(path, everywhere=False))  # fmt: skip


def test_make_setup_installs_every_package_that_the_controller_imports() -> None:
    """The names that packages are imported by; .venv/.tests alone installs the extra `test`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["plan"]]
    names = {re.split(r"[^\w-]", each)[0].replace("-", "_").removeprefix("py") for each in needed}
    names |= {"ansible", "pyinfra"}  # of ansible-core; pyinfra keeps its prefix
    optional = dict.fromkeys(("numpy", "plotly"), PACKAGE / "controller/bench")  # `provision bench` names its extra
    for path in [*MODULES, *(ROOT / "plugins").rglob("*.py")]:
        found = {name.partition(".")[0] for name in imports(path, everywhere=True)}
        found -= {*sys.stdlib_module_names, "provision", "plugins", "ansible_collections"}
        found = {name for name in found if name not in optional or optional[name] not in path.parents}
        assert found <= names, path
    rules = (ROOT / "Makefile").read_text()
    assert "$(call pip,plan)" in rules.partition("\n.venv/.ready:")[2].partition("\n\n")[0]
    assert "$(call pip,test)" in rules.partition("\n.venv/.tests:")[2].partition("\n\n")[0]
    assert "\nup: .venv/.ready " in rules


def test_errors_import_nothing() -> None:
    assert imports(PACKAGE / "errors.py", everywhere=True) == set()


@pytest.mark.parametrize("name", ["files", "sql", "steps"])
def test_pure_parts_of_migrate_do_no_io(name: str) -> None:
    path = PACKAGE / "host" / "migrate" / f"{name}.py"
    assert not {"psycopg", "os", "subprocess", "provision.database"} & imports(path, everywhere=True)


def test_every_command_is_short_and_reachable() -> None:
    for path in sorted((PACKAGE / "cli").glob("[a-z]*.py")):
        assert any(
            isinstance(node, ast.FunctionDef) and node.name == "command" for node in ast.parse(path.read_text()).body
        ), path


def test_no_statement_returns_rows_without_columns() -> None:
    """psycopg of Debian 13 gives such a row as an empty tuple, which is false: as if there were no row."""
    texts = {path: path.read_text() for path in (ROOT / "provision").rglob("*.py")}
    found = [path.name for path, text in texts.items() if re.search(r'(?:execute|ask)\(\s*f?b?"SELECT FROM', text)]
    assert found == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")))
def test_benchmarks_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")
