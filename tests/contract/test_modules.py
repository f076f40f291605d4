"""ansible-doc renders the documentation of every module: it refuses one without a description or with bad markup."""

from __future__ import annotations

import json
import subprocess

from tests.contract.repository import ROOT

FOLDER = ROOT / "plugins/modules"


def test_documentation_of_every_module_renders() -> None:
    names = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    words = ["ansible-doc", "--type=module", f"--module-path={FOLDER}", "--json", *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(json.loads(done.stdout)) == names
