"""The run that proves the default is apart from the others, and says what it lacks instead of skipping."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.contract.repository import ROOT

PYTEST = [sys.executable, "-m", "pytest", "--collect-only", "--quiet"]


def test_names_the_variables_that_it_lacks_as_a_usage_error() -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PROVISION_PG")}
    bare["PROVISION_PGVECTOR_URL"] = "http://192.0.2.1/v0.5.1.tar.gz"
    done = subprocess.run([*PYTEST, "tests/pg14"], cwd=ROOT, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stdout
    assert "PROVISION_PG14_MIRROR_URI: a mirror" in done.stderr
    assert "PROVISION_PG14_MIRROR_KEY: path" in done.stderr
    assert "PROVISION_PGVECTOR_URL" not in done.stderr


def test_is_not_collected_with_the_others() -> None:
    # All folders but the large ones: the rule is one of tests/ itself.
    others = [f"--ignore=tests/{name}" for name in ("integration", "system", "templates", "unit")]
    done = subprocess.run([*PYTEST, "tests", *others], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "tests/contract/test_pg14.py" in done.stdout
    assert "tests/pg14" not in done.stdout
