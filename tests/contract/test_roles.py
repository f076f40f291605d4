"""Roles keep to one shape: what is said twice is the same, and nobody reads what is another's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.contract.repository import ROOT, Role, roles, with_table

ROLES = roles()
each_role = pytest.mark.parametrize("role", ROLES, ids=[role.name for role in ROLES])
# What preflight publishes for all roles: the profile, the host, and its warnings.
SHARED = {
    "preflight_profile",
    "preflight_host",
    "preflight_warnings",
    "preflight_profile_name",
    "preflight_bundle",
    "preflight_pgvector_version",
    "preflight_serving_port",
    "preflight_adopting",
}


def test_there_are_roles() -> None:
    assert {"preflight", "postgresql", "toolkit", "pgvector", "database", "migrations", "verify"} <= {
        role.name for role in ROLES
    }


@each_role
def test_specification_and_defaults_name_the_same_variables_in_the_same_order(role: Role) -> None:
    assert list(role.options) == list(role.defaults)


@each_role
def test_specification_repeats_the_plain_defaults(role: Role) -> None:
    for name, option in role.options.items():
        default = role.defaults[name]
        if "default" in option:
            assert option["default"] == default, name
        else:
            # What comes from the profile differs from host to host, so the specification cannot say it.
            assert "preflight_profile." in str(default), name


@each_role
def test_variables_begin_with_the_role_s_name(role: Role) -> None:
    assert [name for name in role.options if not name.startswith(f"{role.name}_")] == []


@each_role
def test_readme_has_the_table_that_the_specification_makes(role: Role) -> None:
    assert (role.path / "README.md").read_text() == with_table(role), "run: make docs"


@each_role
def test_role_reads_no_variable_of_another(role: Role) -> None:
    others = "|".join(other.name for other in ROLES if other is not role)
    pattern = re.compile(rf"(?<![\w./-])_{{0,2}}(?:{others})_[a-z_]+")
    foreign = {
        f"{path}: {word}"
        for path, text in role.texts().items()
        for word in pattern.findall(_code(text))
        if word not in SHARED and not word.startswith(("postgresql_privs", "database_role"))
    }
    assert foreign == set()


def _code(text: str) -> str:
    """Leave out comments, and what only looks like a variable: keys within a value, names of modules."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(
        r"community\.postgresql\.\w+|ansible\.builtin\.\w+", "", re.sub(r"^ +\w+:", "", "\n".join(lines), flags=re.M)
    )


@each_role
def test_main_task_file_is_a_list_of_steps(role: Role) -> None:
    text = (role.path / "tasks/main.yml").read_text()
    assert text.splitlines()[1].startswith("# Owns on the host:") or "Owns on the host:" in text[:400]
    assert len(text.splitlines()) <= 40


ENVIRONMENTS = ["dev", "prod", "local"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_inventory_sets_only_variables_that_a_role_has(environment: str) -> None:
    known = {name for role in ROLES for name in role.options}
    for path in sorted((ROOT / "inventories" / environment / "group_vars").rglob("*.yml")):
        text = path.read_text()
        if not text.startswith("$ANSIBLE_VAULT"):
            assert set(yaml.safe_load(text) or {}) <= known, path


def test_inventories_have_the_same_files_and_variables() -> None:
    def names(environment: str) -> dict[str, Any]:
        folder = ROOT / "inventories" / environment
        return {
            str(path.relative_to(folder)): list(yaml.safe_load(path.read_text()) or {})
            for path in folder.rglob("*.yml")
            if path.name != "vault.yml"
        }

    assert names("dev") == names("prod") == names("local")


def test_hosts_of_inventories_have_only_variables_that_a_role_has() -> None:
    known = {name for role in ROLES for name in role.options}
    groups = yaml.safe_load((ROOT / "inventories/local/hosts.yml").read_text())["all"]["children"]
    variables = set(groups["database"]["hosts"]["localhost"])
    assert {name for name in variables if not name.startswith(("ansible_", "local_"))} <= known


def test_templates_are_rendered_by_the_role_of_their_folder_only() -> None:
    for template in sorted((ROOT / "templates").glob("*/*.j2")):
        role = Role(ROOT / "roles" / template.parent.name)
        assert any(f"{role.name}/{template.name}" in text for text in role.texts().values()), template


def test_templates_say_what_made_them_and_what_to_change() -> None:
    for template in sorted((ROOT / "templates").glob("*/*.j2")):
        head = template.read_text().splitlines()[:2]
        if template.name.endswith(".json.j2"):  # JSON has no comments
            continue
        assert "ansible_managed" in head[0], template
        assert str(template.relative_to(ROOT)) in head[1], template


def test_every_playbook_opens_with_preflight_and_frees_the_host() -> None:
    for playbook in sorted(ROOT.glob("*.yml")):
        for play in yaml.safe_load(playbook.read_text()):
            first = play["roles"][0]
            assert first["role"] == "preflight", playbook
            assert first["tags"] == ["always"], playbook
            assert play["post_tasks"][-1]["host_lock"]["state"] == "released", playbook
