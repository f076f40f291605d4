"""Roles and playbooks keep one shape: repeated values are equal, and no role reads another's variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.repository import ROOT, Role, roles, with_table

ROLES = roles()
NAMES = {role.name for role in ROLES}
PLAYBOOKS = [path for path in sorted(ROOT.glob("*.yml")) if path.name != "galaxy.yml"]
each_role = pytest.mark.parametrize("role", ROLES, ids=[role.name for role in ROLES])
each_playbook = pytest.mark.parametrize("playbook", PLAYBOOKS, ids=[path.name for path in PLAYBOOKS])
OWN_PREFIXES = {"operate": ("backup_type", "restore_", "switchover_"), "patroni": ("cluster_",)}
"""Names that are typed with -e, named after the playbook, and those of the topology, which several roles serve."""
SHARED = {
    "verify": {"database_credentials"},  # the owner's password, to log in as a client does: no plan holds a secret
    "pgbouncer": {"database_credentials"},  # passwords of the roles with a pool, to prove that each can log in
    "packages": {"postgresql_mirror_key", "citus_source"},  # paths on the controller; the plan keeps the host's copy
    "adopt": {"cluster_name"},  # the server's setting of that name, not the variable
    "etcd": {"cluster_passphrase"},  # passwords of etcd's users; no plan holds a secret
    "pgvector": {"packages_lock_timeout"},  # removes the packages of its build itself
}
"""Variables of another role that a role reads, with the reason."""
PLAYBOOK_ROLES = ("operate", "upgrade", "update")
"""Roles whose variables are given with -e for one run, not in an inventory."""
MOST_OPTIONS = 146
LONGEST_NAME = 70
TASKS = ("block", "rescue", "always")
KEYWORDS = {
    "name", "when", "become", "register", "notify", "tags", "vars", "loop", "loop_control", "no_log", "environment",
    "changed_when", "failed_when", "check_mode", "delegate_to", "run_once", "until", "retries", "delay", "block",
    "rescue", "always", "args", "diff", "delegate_facts", "listen", "throttle",
}  # fmt: skip


def _tasks(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        yield task
        for part in TASKS:
            yield from _tasks(task.get(part) or [])


def tasks_of(path: Path) -> list[dict[str, Any]]:
    """Give every task of a task file or a playbook, those of blocks too."""
    found = yaml.safe_load(path.read_text()) or []
    if found and "hosts" in found[0]:
        parts = ("pre_tasks", "tasks", "post_tasks", "handlers")
        return [task for play in found for part in parts for task in _tasks(play.get(part) or [])]
    return list(_tasks(found))


TASK_FILES = [
    *PLAYBOOKS,
    *sorted((ROOT / "roles").glob("*/tasks/*.yml")),
    *sorted((ROOT / "roles").glob("*/handlers/*.yml")),
]
NAMED = [(str(path.relative_to(ROOT)), task) for path in TASK_FILES for task in tasks_of(path)]


def test_there_are_roles_playbooks_and_tasks() -> None:
    assert {"plan", "postgresql", "toolkit", "pgvector", "database", "migrations", "verify", "operate"} <= NAMES
    assert {"site.yml", "backup.yml", "restore.yml", "drill.yml"} <= {path.name for path in PLAYBOOKS}
    assert len(NAMED) > 60


@each_role
def test_specification_and_defaults_name_the_same_variables_in_the_same_order(role: Role) -> None:
    assert list(role.options) == list(role.defaults)


@each_role
def test_specification_is_read_by_role_plan_alone(role: Role) -> None:
    # An entry point "main" would be validated by Ansible in a task of its own for each role.
    found = yaml.safe_load((role.path / "meta/argument_specs.yml").read_text())["argument_specs"]
    assert list(found) == ["variables"]


@each_role
def test_specification_repeats_the_plain_defaults(role: Role) -> None:
    for name, option in role.options.items():
        default = role.defaults[name]
        if "default" in option:
            assert option["default"] == default, name
        else:
            # A value that differs from host to host: the specification cannot give it.
            assert "{{" in str(default), name


@each_role
def test_variables_begin_with_the_role_s_name(role: Role) -> None:
    prefixes = OWN_PREFIXES.get(role.name, (f"{role.name}_",))
    assert [name for name in role.options if not name.startswith(prefixes)] == []


def test_options_stay_few() -> None:
    assert sum(len(role.options) for role in ROLES if role.name not in PLAYBOOK_ROLES) <= MOST_OPTIONS


def test_no_option_is_set_by_a_playbook() -> None:
    said = {name: option["description"] for role in ROLES for name, option in role.options.items()}
    assert {name for name, text in said.items() if "playbook" in text.lower()} == set()


@each_role
def test_readme_has_the_table_that_the_specification_makes(role: Role) -> None:
    assert (role.path / "README.md").read_text() == with_table(role), "run: make docs"


@each_role
def test_role_reads_the_plan_and_its_own_variables_alone(role: Role) -> None:
    others = {name for other in ROLES if other is not role for name in other.options} - SHARED.get(role.name, set())
    foreign = set()
    for path, text in role.texts().items():
        if "/defaults/" in path or "/meta/" in path:
            continue
        words = set(re.findall(r"(?<![\w.-])\w+", _code(text)))
        private = {word for word in words if re.match(rf"__(?!{role.name}_)\w+[^_]$", word)}
        foreign |= {f"{path}: {word}" for word in (words & others) | private}
    assert foreign == set()


@each_role
def test_exceptions_are_used(role: Role) -> None:
    texts = "\n".join(_code(text) for text in role.texts().values())
    assert {name for name in SHARED.get(role.name, ()) if name not in texts} == set()


def _code(text: str) -> str:
    """Leave out comments and the names of keys."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "//", "--"))]
    return re.sub(r"^[ -]*\w+:", "", "\n".join(lines), flags=re.M)


@each_role
def test_role_brings_the_plan_with_it(role: Role) -> None:
    """Ansible loads a role once for each role that names it, so each names as few as it can."""
    found = yaml.safe_load((role.path / "meta/main.yml").read_text())["dependencies"]
    always = {"role": "plan", "tags": ["always"]}
    toolkit, packages = ({"role": name, "tags": [name]} for name in ("toolkit", "packages"))
    few: dict[str, list[Any]] = {"plan": [], "toolkit": [packages]}
    few |= {name: [always] for name in ("packages", "adopt", "operate", "upgrade", "update")}
    assert found == few.get(role.name, [always, toolkit])


@each_role
def test_templates_are_found_from_anywhere(role: Role) -> None:
    link = role.path / "templates"
    assert link.exists() == (ROOT / "templates" / role.name).is_dir()
    if link.exists():
        assert str(link.readlink()) == f"../../templates/{role.name}"


@each_role
def test_main_task_file_is_a_list_of_steps(role: Role) -> None:
    text = (role.path / "tasks/main.yml").read_text()
    assert len(text.splitlines()) <= 40
    if role.name != "plan":
        assert "Owns on the host:" in text[:400]
        assert "Leaves to others:" in text[:900]


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
    every = "\n".join(text for role in ROLES for text in role.texts().values())
    for template in sorted((ROOT / "templates").glob("*/*.j2")):
        role = Role(ROOT / "roles" / template.parent.name)
        own = "\n".join(text for path, text in role.texts().items() if path.startswith("roles/"))
        stem = template.name.removesuffix(".j2")
        parts = stem in own and "name ~ '.j2'" in own  # a loop over names
        shared = f"templates/toolkit/{template.name}" in every  # the one template that several roles render
        assert template.name in own or parts or shared, template


def test_templates_say_what_made_them_and_what_to_change() -> None:
    for template in sorted((ROOT / "templates").glob("*/*.j2")):
        head = template.read_text().splitlines()[:2]
        if template.name.endswith(".json.j2"):  # JSON has no comments
            continue
        assert "ansible_managed" in head[0], template
        assert str(template.relative_to(ROOT)) in head[1], template


IN_ORDER = """"{{ ['update_first', 'update_last'] | select('in', groups) | join(':') | default('all:!all', true) }}\""""
"""The hosts of an update, whose groups the play before makes."""


@each_playbook
def test_playbook_is_short_and_has_no_program_in_it(playbook: Path) -> None:
    text = playbook.read_text()
    assert len(text.splitlines()) <= 60
    assert "{%" not in text
    # An inventory may lack these groups, which ansible.cfg would make an error of the pattern.
    for group in ("backup", "pooler", "update_members", "upgrade_confirmed"):
        text = text.replace(f"""hosts: "{{{{ '{group}' if '{group}' in groups else 'all:!all' }}}}\"""", "")
    text = text.replace(f"hosts: {IN_ORDER}", "")
    assert "{{" not in text


@each_playbook
def test_play_on_hosts_begins_with_the_plan_and_ends_with_the_lock_s_release(playbook: Path) -> None:
    plays = yaml.safe_load(playbook.read_text())
    assert plays[0]["tasks"][0]["minion.provision.require_hosts"]
    on_hosts = [play for play in plays if play["hosts"] != "localhost"]
    assert on_hosts
    for play in on_hosts:
        assert play["gather_facts"] is False
        # Each role brings role plan with it, which takes the host lock.
        assert {each["role"] for each in play["roles"]} <= NAMES
        assert play["roles"]
        last = play["post_tasks"][-1]
        assert "minion.provision.host_lock" in last
        assert last["tags"] == ["always"]
        assert (last["minion.provision.host_lock"] or {}).get("state", "released") == "released"


@each_playbook
def test_plays_are_numbered(playbook: Path) -> None:
    plays = yaml.safe_load(playbook.read_text())
    assert [play["name"][:6] for play in plays] == [f"({n}/{len(plays)}) " for n in range(1, len(plays) + 1)]


def test_modules_are_called_by_their_whole_names() -> None:
    found = set()
    for path, task in NAMED:
        found |= {f"{path}: {key}" for key in set(task) - KEYWORDS if key.count(".") < 2}
    assert found == set()


IMPERATIVE = re.compile(r"[A-Z][a-z]+(?: [^{}]*[^.{}])?")


def test_task_names_are_short_imperatives() -> None:
    names = [(path, task.get("name", "")) for path, task in NAMED]
    assert [(path, name) for path, name in names if not IMPERATIVE.fullmatch(name)] == []
    assert [(path, name) for path, name in names if len(name) > LONGEST_NAME] == []
    not_verbs = ("The ", "A ", "An ", "Let ", "Know ", "If ", "When ", "What ", "In ", "With ", "To ")
    assert [(path, name) for path, name in names if name.startswith(not_verbs)] == []


SOURCES = [
    path
    for folder in ("provision", "plugins", "roles", "templates")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and path.suffix in (".py", ".yml", ".j2")
] + [*PLAYBOOKS, ROOT / "Vagrantfile"]
COMPARISONS = (
    r"""(?:==|!=)\s*['"](?:dev|prod)['"]""",
    r"""['"](?:dev|prod)['"]\s*(?:==|!=)""",
    r"""\bin\s*[\[({]\s*['"](?:dev|prod)['"]""",
    r"""\bcase\s+['"](?:dev|prod)['"]""",
    r"""(?:startswith|is match|search)\(\s*['"]\^?(?:dev|prod)""",
)


def test_nothing_compares_the_name_of_a_profile() -> None:
    pattern = re.compile("|".join(COMPARISONS))
    assert all(pattern.search(text) for text in ("x == 'prod'", '"dev" != x', "x in ('prod', 'dev')", "case 'dev'"))
    found = {str(path.relative_to(ROOT)) for path in SOURCES if pattern.search(path.read_text())}
    assert len(SOURCES) > 200
    assert found == set()
