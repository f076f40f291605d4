"""Profiles side by side: the same keys in the same order, each with its reason, and each read by something."""

import re
from pathlib import Path

import pytest
import yaml

from provision.errors import UsageError
from provision.tuning import Choices
from provision.tuning.choices import built_in

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "profiles"
NAMES = sorted(path.stem for path in PROFILES.glob("*.yml"))


def keys(node: object, path: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [path]
    return [key for name, child in node.items() for key in keys(child, f"{path}.{name}")]


def load(name: str) -> dict[str, dict[str, object]]:
    loaded = yaml.safe_load((PROFILES / f"{name}.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_there_are_profiles() -> None:
    assert {"dev", "prod"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_has_the_same_keys_in_the_same_order(name: str) -> None:
    assert keys(load(name)) == keys(load("prod"))


@pytest.mark.parametrize("key", keys(load("prod")))
def test_every_key_is_read(key: str) -> None:
    _, section, name = key.split(".")
    if section == "postgresql" and name != "restart_allowed":
        assert hasattr(built_in("prod"), name)  # compared with the file below
        return
    defaults = "\n".join(path.read_text() for path in ROOT.glob("roles/*/defaults/main.yml"))
    package = "\n".join(path.read_text() for path in (ROOT / "provision/plan").glob("*.py"))
    read = f"plan_profile.{section}.{name}" in defaults or re.search(rf'profile\["{section}"\]\["{name}"\]', package)
    assert read or (section == "pgbouncer" and f'sizes["{name}"]' in package)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_its_reason_beside_it(name: str) -> None:
    bare = [
        line
        for line in (PROFILES / f"{name}.yml").read_text().splitlines()
        if line.startswith("  ") and "  # " not in line
    ]
    assert bare == []


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_built_in_choices_are_those_of_the_file(name: str) -> None:
    assert Choices.of(load(name)["postgresql"]) == built_in(name)


def test_refuses_a_misspelt_key_and_names_the_right_one() -> None:
    section = load("prod")["postgresql"]
    section["log_statment"] = section.pop("log_statement")
    with pytest.raises(UsageError) as refused:
        Choices.of(section)
    assert refused.value.where == "postgresql.log_statment"
    assert refused.value.allowed == "log_statement"


def test_refuses_a_missing_key() -> None:
    section = load("prod")["postgresql"]
    del section["sizes"]
    with pytest.raises(UsageError, match="key missing from a profile") as refused:
        Choices.of(section)
    assert refused.value.run == "grep '^  sizes:' profiles/prod.yml  # copy its line"


def test_refuses_a_class_that_pgaudit_does_not_have() -> None:
    section = {**load("prod")["postgresql"], "audit": ["role", "-misc", "dll"]}
    with pytest.raises(UsageError, match="unknown class of statements") as refused:
        Choices.of(section)
    assert (refused.value.where, refused.value.seen) == ("postgresql.audit", "dll")
