"""Preparation of Vagrant machines: an inventory without the user's hosts and secrets, and a Containerfile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from provision.controller.narration import Narration
from provision.controller.vagrant import Request, containerfile, default_os, prepare, write_inventory
from provision.controller.vault import Vault
from provision.errors import UsageError
from tests.contract.repository import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    for name, published in (("dev", "true"), ("staging", "false"), ("bare", "false")):
        (tmp_path / f"profiles/{name}.yml").write_text(f"access:\n  published_passwords: {published}\n")
    for name in ("dev", "staging"):
        variables = tmp_path / f"inventories/{name}/group_vars/all"
        variables.mkdir(parents=True)
        (tmp_path / f"inventories/{name}/hosts.yml").write_text("all: {hosts: {db.example.com: {}}}\n")
        (variables / "main.yml").write_text("database_name: mine\n")
        (variables / "vault.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n00\n")
    return tmp_path


def request(profile: str = "dev", repository: str = "inventory") -> Request:
    rest = (Path("/nonexistent"), repository, "qemu", "debian/bookworm64")
    return Request("libvirt", profile, "debian13", 2048, 2, ("db1", "db2"), *rest)


def test_profile_without_published_passwords_gets_the_variables_but_neither_hosts_nor_secrets(project: Path) -> None:
    folder = project / ".provision/vagrant"
    prepare(project, request("staging"), Narration())
    assert yaml.safe_load((folder / "staging/group_vars/all/main.yml").read_text())["database_name"] == "mine"
    assert "db.example.com" not in (folder / "staging/hosts.yml").read_text()
    assert (folder / "vault-password").stat().st_mode & 0o777 == 0o600
    password = (folder / "vault-password").read_text()
    secrets = Vault(folder / "staging", password).read()
    assert len(secrets["database_credentials"]["minion"]["password"]) >= 20
    write_inventory(project, folder, "staging")  # again, as `vagrant provision` does
    assert Vault(folder / "staging", password).read() == secrets


def test_machines_with_addresses_are_a_cluster_of_dev(project: Path) -> None:
    addresses = ("192.0.2.11", "192.0.2.12")
    prepare(project, replace(request(), addresses=addresses), Narration())
    found = yaml.safe_load((project / ".provision/vagrant/hosts.yml").read_text())["all"]
    assert found["vars"] == {"cluster_enabled": True, "tls_enabled": True}
    assert found["hosts"] == {
        f"db{number}": {"cluster_address": address} for number, address in enumerate(addresses, 1)
    }
    remembered = json.loads((project / ".provision/vagrant/choices.json").read_text())
    assert (remembered["nodes"], "machines" in remembered) == (2, False)


def test_cluster_of_a_profile_with_backups_elsewhere_is_refused(project: Path) -> None:
    with pytest.raises(UsageError, match="MINION_PROFILE=dev"):
        prepare(project, replace(request("staging"), addresses=("192.0.2.11", "192.0.2.12")), Narration())


def test_virtual_machine_keeps_the_versions_of_the_inventory(project: Path) -> None:
    prepared = prepare(project, request(), Narration())
    assert (prepared.image, prepared.arguments) == ("", [])
    hosts = yaml.safe_load((project / ".provision/vagrant/hosts.yml").read_text())
    assert hosts == {"all": {"hosts": {"db1": {}, "db2": {}}}}
    remembered = json.loads((project / ".provision/vagrant/choices.json").read_text())
    chosen = {"profile": "dev", "os": "debian13", "memory": 2048, "cpus": 2, "machines": 2}
    assert remembered == {**chosen, "repository": "inventory", "driver": "qemu", "box": "debian/bookworm64"}
    assert not (project / ".provision/vagrant/vault-password").exists()


def test_virtual_machine_takes_the_versions_of_its_release_on_request(project: Path) -> None:
    prepare(project, request(repository="distribution"), Narration())
    hosts = yaml.safe_load((project / ".provision/vagrant/hosts.yml").read_text())
    versions = {"postgresql_version": 17, "postgresql_repository": "distribution", "pgvector_install_method": "package"}
    assert hosts == {"all": {"hosts": {"db1": versions, "db2": versions}}}


def test_refuses_an_unknown_repository(project: Path) -> None:
    with pytest.raises(UsageError) as refused:
        prepare(project, request(repository="mirror"), Narration())
    assert (refused.value.where, refused.value.allowed) == ("MINION_REPOSITORY", "inventory, distribution")


def test_refuses_another_profile_than_the_machines_have(project: Path) -> None:
    prepare(project, request(), Narration())
    with pytest.raises(UsageError, match="have another profile") as refused:
        prepare(project, request(profile="staging"), Narration())
    assert "vagrant destroy -f" in refused.value.run


def test_refuses_an_unknown_profile(project: Path) -> None:
    with pytest.raises(UsageError) as refused:
        prepare(project, request(profile="prod"), Narration())
    assert (refused.value.where, refused.value.allowed) == ("MINION_PROFILE", "bare, dev, staging")


def test_refuses_a_profile_without_an_inventory(project: Path) -> None:
    with pytest.raises(UsageError, match="the profile has no inventory") as refused:
        prepare(project, request(profile="bare"), Narration())
    assert refused.value.where.endswith("inventories/bare/group_vars/all/main.yml")


def test_refuses_a_profile_without_the_key_published_passwords(project: Path) -> None:
    (project / "profiles/dev.yml").write_text("access:\n  listen_addresses: []\n")
    with pytest.raises(UsageError, match="key missing from a profile") as refused:
        prepare(project, request(), Narration())
    assert refused.value.where.endswith("profiles/dev.yml: access.published_passwords")


def test_default_release_depends_on_the_provider() -> None:
    assert [default_os(each) for each in ("docker", "libvirt", "virtualbox")] == ["debian13", "debian12", "debian12"]


def test_vagrantfile_finds_the_box_without_a_virtual_environment() -> None:
    (code,) = re.findall(r'^  code = "(.*)"$', (ROOT / "Vagrantfile").read_text(), re.M)
    for arguments, box in ((["debian13"], "debian/trixie64"), ([], "debian/bookworm64")):
        words = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}", *arguments]
        assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout == f"{box}\n"


def test_recipe_has_one_user_with_the_key_and_sudo() -> None:
    recipe = containerfile("localhost/base:1", "ssh-rsa AAAA 'quoted'")
    assert recipe.startswith("FROM localhost/base:1\nRUN useradd --create-home --shell /bin/bash vagrant && ")
    assert "'ssh-rsa AAAA '\"'\"'quoted'\"'\"''" in recipe
    assert "visudo -cq" in recipe
    assert recipe.count("\n") == 2
