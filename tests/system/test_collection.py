"""The installed collection converges a host from an empty project, without a checkout and without our ansible.cfg."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.collection import build, install
from tests.sandboxes import Host, Hosts
from tests.system.playbooks import Run, terminal

# Python runs this at its start: it hides the package that is installed in the virtual environment of the tests.
HIDE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "provision" not in getattr(finder, "__module__", "")]
"""
VARIABLES = {
    "plan_profile_name": "dev",
    "database_credentials": {
        name: {"password": f"secret of {name}", "salt": "c2FsdCBvZiBhIHRlc3Q="}
        for name in ("minion", "minion_app", "minion_readonly")
    },
}


@dataclass(frozen=True)
class Project:
    """An empty project with the collection installed, and its only host."""

    folder: Path
    host: Host

    def environment(self) -> dict[str, str]:
        """Give an environment without settings of Ansible or Python but those of the test."""
        kept = {key: value for key, value in terminal().items() if not key.startswith(("ANSIBLE_", "PYTHON"))}
        own = {"ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_CONFIG": str(self.folder / "settings/empty.cfg")}
        return {**kept, **own, "ANSIBLE_NOCOLOR": "1", "PYTHONPATH": str(self.folder / "hide")}

    def converge(self, *roles: str) -> Run:
        """Write a playbook with these roles and run it from another directory."""
        play = {
            "name": "Converge",
            "hosts": "database",
            "become": True,
            "roles": [f"minion.provision.{x}" for x in roles],
        }
        playbook = self.folder / "playbook.yml"
        playbook.write_text(yaml.safe_dump([play]))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = subprocess.run(
            [program, str(playbook), "-i", str(self.host.inventory)],
            cwd=self.folder.parent,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        return Run(done.returncode, done.stdout)

    def ask(self, statement: str, database: str = "postgres") -> str:
        """Ask the host's server as its superuser."""
        return self.host.run(f'runuser -u postgres -- psql -XAtc "{statement}" {database}').stdout.strip()


@pytest.fixture(scope="module")
def project(sandbox: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("empty") / "project"
    install(build(tmp_path_factory.mktemp("tarball")), folder / "collections")
    files = {
        "group_vars/database.yml": yaml.safe_dump(VARIABLES),
        "hide/sitecustomize.py": HIDE,
        "settings/empty.cfg": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    return Project(folder, sandbox.up("alone"))


def test_package_of_the_virtual_environment_is_hidden(project: Project) -> None:
    words = [sys.executable, "-c", "import provision"]
    done = subprocess.run(
        words, cwd=project.folder, env=project.environment(), capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError: No module named 'provision'" in done.stderr


def test_postgresql_and_pgvector_converge(project: Project) -> None:
    run = project.converge("postgresql", "pgvector")
    assert run.code == 0, run.output
    assert run.recap["alone"].changed > 0
    assert project.ask("SHOW data_checksums") == "on"
    assert project.ask("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == "1"
    assert project.host.run("dpkg-query -Wf '${Status}' pgbouncer").returncode != 0


def test_second_run_changes_nothing(project: Project) -> None:
    run = project.converge("postgresql", "pgvector")
    assert run.code == 0, run.output
    assert run.recap["alone"].changed == 0, run.output


def test_pgbouncer_alone_converges_on_a_host_with_the_database(project: Project) -> None:
    database = project.converge("database")
    assert database.code == 0, database.output
    pooler = project.converge("pgbouncer")
    assert pooler.code == 0, pooler.output
    login = "PGPASSWORD='secret of minion' psql -XAtc 'SELECT current_user' -h 127.0.0.1 -p 6432 -U minion minion"
    assert project.host.run(login).stdout.strip() == "minion"


def test_all_roles_of_site_converge_with_a_profile_of_the_project(project: Project) -> None:
    # The profile exists in the project alone; migrations and templates exist in the collection alone.
    root = project.folder / "collections/ansible_collections/minion/provision"
    (project.folder / "profiles").mkdir()
    (project.folder / "profiles/own.yml").write_text((root / "profiles/dev.yml").read_text())
    variables = {**VARIABLES, "plan_profile_name": "own"}
    (project.folder / "group_vars/database.yml").write_text(yaml.safe_dump(variables))
    site = yaml.safe_load((root / "site.yml").read_text())
    roles = next(play["roles"] for play in site if "database" in play["hosts"])
    run = project.converge(*(role["role"] for role in roles))
    assert run.code == 0, run.output
    assert project.ask("SELECT to_regclass('memories')", "minion") == "memories"


def test_run_writes_nothing_into_the_installed_collection(project: Project) -> None:
    root = project.folder / "collections/ansible_collections/minion/provision"
    written = [path for path in root.rglob("*") if "__pycache__" not in path.parts and ".provision" in path.parts]
    assert written == []
    assert (project.folder / ".provision/toolkit").is_dir()
