"""`provision plan` prints what site.yml would make of fresh hosts, and refuses what it would refuse. Asks no host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from provision.controller.vault import Vault, initialise
from tests.contract.repository import ROOT


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """An inventory of two dev hosts that nothing answers for."""
    folder = tmp_path / "dev"
    variables = folder / "group_vars/all"
    variables.mkdir(parents=True)
    for name in ("main.yml", "vault.yml"):
        (variables / name).write_text((ROOT / "inventories/dev/group_vars/all" / name).read_text())
    hosts = {"db1": {"ansible_host": "192.0.2.1"}, "db2": {"ansible_host": "192.0.2.2", "postgresql_port": 5433}}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": {"database": {"hosts": hosts}}}}))
    return folder


def plan(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from provision.cli import main; main()", "plan", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_prints_the_plan_of_every_database_host_as_json(inventory: Path) -> None:
    done = plan("--inventory", inventory, "--json")
    assert done.returncode == 0, done.stderr
    plans = {name: facts["plan"] for name, facts in json.loads(done.stdout).items()}
    assert {name: each["server"]["port"] for name, each in plans.items()} == {"db1": 5432, "db2": 5433}
    assert plans["db1"]["address"] == "192.0.2.1"
    assert plans["db1"]["profile"] == "dev"
    assert plans["db1"]["server"]["major"] == 14
    assert "minion_secret" not in done.stdout


def test_prints_one_host_for_people(inventory: Path) -> None:
    done = plan("--inventory", inventory, "--limit", "db2")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["name"] == "db2"
    assert shown["server"]["settings"]["shared_buffers"].startswith("256MB")
    assert "warning: PostgreSQL 14" in done.stderr


def test_refuses_a_profile_without_a_file(inventory: Path) -> None:
    variables = inventory / "group_vars/all/main.yml"
    variables.write_text(variables.read_text().replace("plan_profile_name: dev", "plan_profile_name: staging"))
    refused = plan("--inventory", inventory, "--json")
    assert refused.returncode == 2
    assert "plan_profile_name is 'staging'" in refused.stderr


def test_names_every_problem_for_which_site_yml_would_refuse_a_host(inventory: Path) -> None:
    extra = {"postgresql_prot": 5433, "postgresql_listen_addresses": "10.0.0.5", "pgbouncer_port": 80}
    (inventory / "group_vars/all/extra.yml").write_text(yaml.safe_dump(extra))
    done = plan("--inventory", inventory, "--limit", "db1", "--json")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["db1"]["problems"]
    assert "unknown variable postgresql_prot: did you mean postgresql_port?" in problems
    assert "postgresql_listen_addresses is '10.0.0.5': expected a list; write ['10.0.0.5']" in problems


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "no inventory"),
        (["--inventory", "inventories/nope"], "no such inventory"),
        (["--inventory", "inventories/dev"], "no host in group database"),
        (["--inventory", "{inventory}", "--limit", "db9"], "db9"),
    ],
)
def test_an_inventory_that_gives_no_host_is_an_error(inventory: Path, words: list[str], expected: str) -> None:
    done = plan(*(word.format(inventory=inventory) for word in words))
    assert done.returncode == 2
    assert expected in done.stderr


def test_hosts_whose_names_begin_alike_are_refused_together(inventory: Path) -> None:
    hosts = {
        "pg1.eu": {"ansible_host": "192.0.2.1"},
        "pg1.us": {"ansible_host": "192.0.2.2"},
        "pg2.eu": {"ansible_host": "192.0.2.3"},
        "pg1.asia": {"ansible_host": "192.0.2.4", "backup_stanza": "pg1-asia"},
        "pg1.old": {"ansible_host": "192.0.2.5", "backup_physical": False},
    }
    store = {"store": {"ansible_host": "fd00::9", "ansible_port": "2222"}}
    groups = {"database": {"hosts": hosts}, "backup": {"hosts": store}}
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    given = {
        "backup_physical": True,
        "backup_repository_passphrase": "the repository's passphrase of a test",
        "postgresql_version": 17,
        "postgresql_repository": "distribution",
        "pgvector_install_method": "package",
    }
    (inventory / "group_vars/all/extra.yml").write_text(yaml.safe_dump(given))
    done = plan("--inventory", inventory, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    reported = "which share a repository: set backup_stanza to another name on the host that has no backups yet"
    assert {name: each.get("problems") or [] for name, each in found.items()} == {
        "pg1.eu": [f"backup_stanza is 'pg1' on pg1.eu and on pg1.us, {reported}"],
        "pg1.us": [f"backup_stanza is 'pg1' on pg1.us and on pg1.eu, {reported}"],
        "pg2.eu": [],
        "pg1.asia": [],
        "pg1.old": [],
    }
    repository = found["pg2.eu"]["plan"]["backup"]["repositories"][0]
    assert (repository["host"], repository["port"]) == ("fd00::9", 2222)


@pytest.fixture
def production(tmp_path: Path) -> Path:
    """An inventory of one prod host with a vault, whose password is in the file key; it has no backup host."""
    folder = tmp_path / "prod"
    shutil.copytree(ROOT / "inventories/prod", folder, ignore=shutil.ignore_patterns("tls", "vault.yml"))
    hosts = {"database": {"hosts": {"db1": {"ansible_host": "192.0.2.1"}}}, "backup": {"hosts": {}}}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": hosts}}))
    (tmp_path / "key").write_text("the right password")
    initialise(Vault(folder, "the right password"))
    return folder


def test_refuses_a_prod_host_whose_only_repository_would_be_its_own(production: Path) -> None:
    refused = plan("--inventory", production, "--vault-password-file", production.parent / "key")
    assert refused.returncode == 1
    assert "the only backup repository would be on the host that it protects" in refused.stdout
    assert "put a host into the group backup of the inventory, set backup_s3, or accept it with" in refused.stdout


def test_says_that_the_vault_password_is_wrong_or_missing(production: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (production.parent / "key").write_text("a wrong password")
    wrong = plan("--inventory", production, "--vault-password-file", production.parent / "key")
    assert (wrong.returncode, "a wrong vault password" in wrong.stderr) == (2, True)
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE", raising=False)
    none = plan("--inventory", production)
    assert (none.returncode, "no vault password was given" in none.stderr) == (2, True)
