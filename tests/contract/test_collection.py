"""The collection's tarball holds the roles, the plugins and the package, complete and with nothing else."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import provision
from tests.collection import ROOT, build, install

FOLDERS = {"docs", "meta", "migrations", "plugins", "profiles", "provision", "roles", "templates"}
FILES = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml"}
MEGABYTE = 1024**2


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tarball, tmp_path_factory.mktemp("installed"))


def test_tarball_holds_every_file_that_git_knows_and_no_other(tarball: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = {name for name in known if name.partition("/")[0] in FOLDERS or name in FILES}
    expected |= {path.name for path in ROOT.glob("*.yml")} - {"galaxy.yml"}
    with tarfile.open(tarball) as archive:
        held = {member.name for member in archive if not member.isdir()}
    assert held - {"MANIFEST.json", "FILES.json"} == {name for name in expected if (ROOT / name).exists()}


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        ".venv/bin/python",
        ".provision/sandbox/id_ed25519",
        ".cache/x",
        "inventories/prod/group_vars/all/vault.yml",
        "inventories/prod/tls/ca.key",
        "tests/unit/test_tuning.py",
        "provision/__pycache__/errors.cpython-311.pyc",
        "provision.egg-info/PKG-INFO",
        "node_modules/x",
        "site.retry",
    ],
)
def test_private_and_generated_files_are_ignored(name: str) -> None:
    ignored = yaml.safe_load((ROOT / "galaxy.yml").read_text())["build_ignore"]
    parts = name.split("/")
    paths = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    assert any(fnmatch.fnmatch(path, pattern) for path in paths for pattern in ignored)


def test_tarball_is_small(tarball: Path) -> None:
    assert tarball.stat().st_size < 2 * MEGABYTE


def test_every_link_resolves_inside_the_installed_collection(installed: Path) -> None:
    links = [path for path in installed.rglob("*") if path.is_symlink()]
    assert {f"roles/{path.name}/templates" for path in (installed / "templates").iterdir()} <= {
        path.relative_to(installed).as_posix() for path in links
    }
    assert [path for path in links if not path.resolve().is_relative_to(installed) or not path.exists()] == []


def test_plugins_import_the_package_of_their_own_collection(installed: Path) -> None:
    # The virtual environment of the tests has a `provision` of its own, which must not win.
    script = (
        f"import sys; sys.path.insert(0, {str(installed.parents[2])!r})\n"
        "import ansible_collections.minion.provision.plugins.plugin_utils.project\n"
        "import provision.controller.inputs as inputs\n"
        "print(inputs.__file__); print(len(inputs.specifications()))"
    )
    words = [sys.executable, "-I", "-c", script]
    done = subprocess.run(words, cwd=installed.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path, options = done.stdout.split()
    assert path == str(installed / "provision/controller/inputs.py")
    assert int(options) > 0


def test_one_version_everywhere() -> None:
    newest = re.search(r"^## \[(.+?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"] == newest[1] == provision.__version__
