"""ansible-doc renders the documentation of every module: it refuses one without a description or with bad markup."""

from __future__ import annotations

import json
import subprocess

from tests.contract.repository import ROOT


def test_documentation_of_every_module_renders() -> None:
    names = sorted(f"minion.provision.{path.stem}" for path in (ROOT / "plugins/modules").glob("[a-z]*.py"))
    words = ["ansible-doc", "--type=module", "--json", *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(json.loads(done.stdout)) == names
    shown = subprocess.run(
        ["ansible-doc", "--type=module", *names], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(name in shown.stdout for name in names)
