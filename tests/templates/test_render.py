"""Every template, rendered strictly with the roles' defaults for dev and prod, is what was approved.

After a change that is meant: PROVISION_APPROVE=1 pytest tests/templates, then read the diff of golden/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contract.repository import ROOT, roles

GOLDEN = Path(__file__).with_name("golden")
TEMPLATES = sorted((ROOT / "templates").glob("*/*.j2"))


@pytest.fixture(scope="module", params=["dev", "prod"])
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    profile: str = request.param
    target = tmp_path_factory.mktemp(profile)
    defaults = tmp_path_factory.mktemp("defaults") / "defaults.yml"
    defaults.write_text(yaml.safe_dump({key: value for role in roles() for key, value in role.defaults.items()}))
    # Defaults come as inventory variables would: the weakest, so that the playbook's own values win.
    inventory = defaults.with_name("hosts.yml")
    variables = {**yaml.safe_load(defaults.read_text()), "ansible_python_interpreter": sys.executable}
    inventory.write_text(yaml.safe_dump({"all": {"hosts": {"localhost": None}, "vars": variables}}))
    command: list[str | Path] = [
        Path(sys.executable).with_name("ansible-playbook"),
        "tests/templates/render.yml",
        "-i",
        inventory,
    ]
    wishes = {
        "profile": profile,
        "target": str(target),
        "root": str(ROOT),
        "role_vars": [str(path) for path in sorted((ROOT / "roles").glob("*/vars/main.yml"))],
        "templates": [str(path) for path in TEMPLATES],
    }
    done = subprocess.run([*command, "-e", json.dumps(wishes)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return profile, json.loads((target / "rendered.json").read_text())


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_template_renders_as_approved(rendered: tuple[str, dict[str, str]], template: Path) -> None:
    profile, texts = rendered
    name = f"{template.parent.name}-{template.stem}"
    approved = GOLDEN / profile / name
    text = texts[str(template)]
    if os.environ.get("PROVISION_APPROVE"):
        approved.parent.mkdir(parents=True, exist_ok=True)
        approved.write_text(text)
    assert text == approved.read_text()
    assert "minion_secret" not in text


def test_nothing_is_approved_that_is_not_rendered() -> None:
    names = {f"{path.parent.name}-{path.stem}" for path in TEMPLATES}
    for profile in ("dev", "prod"):
        assert {path.name for path in (GOLDEN / profile).iterdir()} == names
