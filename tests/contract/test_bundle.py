"""A bundle holds what every role installs, and nothing that no role asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jinja2 import Environment, nodes

from provision.controller.bundle.contents import PACKAGES, PGVECTOR, packages
from tests.contract.repository import ROOT, Role, roles

MAJOR = re.compile(r"\{\{ \w+_version \}\}")
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+(?:\{major\})?[a-z0-9+.-]*")


def named(role: Role) -> set[str]:
    """Every package that a role's tasks and templates hand to apt."""
    found: set[str] = set()
    variables = {**role.defaults, **_variables(role)}
    for path in sorted((role.path / "tasks").glob("*.yml")):
        for task in _tasks(yaml.safe_load(path.read_text()) or []):
            found |= _words((task.get("vars") or {}).get("packages_names", []), variables)
            apt = task.get("ansible.builtin.apt") or {}
            if role.name != "packages" and apt.get("state") != "absent":
                found |= _words(apt.get("name", []), variables)
    for template in sorted((ROOT / "templates" / role.name).glob("*.j2")):
        for line in re.findall(r"apt-get .*install (.*)", template.read_text()):
            found |= {word for word in re.sub(r">.*", "", line).split() if not word.startswith("-")}
    return found


def _variables(role: Role) -> dict[str, Any]:
    path = role.path / "vars/main.yml"
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def _tasks(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from _tasks(task.get(part) or [])


def _words(value: Any, variables: dict[str, Any]) -> set[str]:
    """Names in a list, in the lists within an expression, and in the variables that it reads."""
    if isinstance(value, list):
        return {word for item in value for word in _words(item, variables)}
    text = MAJOR.sub("{major}", str(value))
    if "{{" not in text:
        assert NAME.fullmatch(text), text
        return {text}
    tree = Environment(autoescape=True).parse(text)
    found = set()
    for each in tree.find_all(nodes.List):
        found |= {item.value for item in each.items if isinstance(item, nodes.Const)}
    for name in {each.name for each in tree.find_all(nodes.Name)} & set(variables):
        if name.endswith(("_packages", "_package")):
            found |= _words(variables[name], variables)
    return found


@pytest.mark.parametrize("role", roles(), ids=lambda role: role.name)
def test_bundle_has_what_the_role_installs(role: Role) -> None:
    declared = set(PACKAGES.get(role.name, ()))
    if role.name == "pgvector":
        declared = {name for rows in PGVECTOR.values() for name in rows}
    if role.name == "preflight":  # what Ansible needs of a host before any role runs
        assert declared == {"python3", "python3-apt", "sudo"}
        return
    assert named(role) == declared, "change provision/controller/bundle/contents.py"


def test_the_reading_of_roles_finds_what_is_known_to_be_there() -> None:
    found = {role.name: named(role) for role in roles()}
    assert {"postgresql-{major}", "postgresql-client-{major}", "postgresql-common"} <= found["postgresql"]
    assert {"pgbackrest", "openssh-client", "openssh-server"} <= found["backup"]
    assert {"gcc", "postgresql-server-dev-{major}", "postgresql-{major}-pgvector"} <= found["pgvector"]


def test_major_is_filled_in() -> None:
    assert {"postgresql-16", "postgresql-server-dev-16", "gcc"} <= set(packages(16, "source"))
    assert "gcc" not in packages(16, "package")
