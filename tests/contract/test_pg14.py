"""The runs that need a mirror are apart from the others, and say what they lack instead of skipping."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.contract.repository import ROOT

PYTEST = [sys.executable, "-m", "pytest", "--collect-only", "--quiet"]


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    """Collect tests with one of the variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROVISION_PG")}
    environment["PROVISION_PGVECTOR_URL"] = "http://192.0.2.1/v0.5.1.tar.gz"
    return subprocess.run([*PYTEST, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("folder", ["pg14", "majors"])
def test_names_the_variables_that_it_lacks_as_a_usage_error(folder: str) -> None:
    done = bare(f"tests/{folder}")
    assert done.returncode == 4, done.stdout
    assert "PROVISION_PG14_MIRROR_URI: a mirror" in done.stderr
    assert "PROVISION_PG14_MIRROR_KEY: path" in done.stderr
    assert "PROVISION_PGVECTOR_URL" not in done.stderr


def test_upgrades_between_debians_own_majors_need_no_variables() -> None:
    named = re.search(r"pytest (tests/majors -k \S+)", bare("tests/majors").stderr)
    assert named
    done = bare(*named[1].split())
    assert done.returncode == 0, done.stderr
    assert "[17-18]" in done.stdout
    assert "[14-17]" not in done.stdout


def test_is_not_collected_with_the_others() -> None:
    # All folders but the large ones: the rule is one of tests/ itself.
    others = [f"--ignore=tests/{name}" for name in ("integration", "system", "templates", "unit")]
    done = subprocess.run([*PYTEST, "tests", *others], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "tests/contract/test_pg14.py" in done.stdout
    assert "tests/pg14" not in done.stdout
    assert "tests/majors" not in done.stdout
