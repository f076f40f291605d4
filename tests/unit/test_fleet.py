"""One inventory serves Ansible and the audit: names, addresses, users, keys and the words of ssh."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.controller import fleet
from provision.controller.audit import Doctor, Placed
from provision.errors import UsageError

INVENTORY = """
all:
  vars: {ansible_user: admin, database_credentials: {minion: {password: not to be kept}}}
  children:
    database:
      hosts:
        db1: {ansible_host: 192.0.2.1, ansible_port: 2222}
      children:
        replicas:
          hosts:
            db2:
              ansible_ssh_private_key_file: /keys/id
              ansible_ssh_common_args: "-o UserKnownHostsFile='/a b/known' -oStrictHostKeyChecking=no"
    backup:
      hosts: {store: {}}
"""


def test_hosts_of_the_group_and_of_its_children_with_how_to_log_in(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text(INVENTORY)
    assert {each.name: each.data for each in fleet.read([str(path)])} == {
        "db1": {
            "ssh_hostname": "192.0.2.1",
            "ssh_port": 2222,
            "ssh_user": "admin",
            "ssh_strict_host_key_checking": "yes",
        },
        "db2": {
            "ssh_hostname": "db2",
            "ssh_user": "admin",
            "ssh_key": "/keys/id",
            "ssh_known_hosts_file": "/a b/known",
            "ssh_strict_host_key_checking": "no",
        },
    }
    assert [each.name for each in fleet.read([str(path)], limit="db2")] == ["db2"]


def test_an_inventory_without_database_hosts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yml"
    path.write_text("all: {hosts: {store: {}}}")
    with pytest.raises(UsageError, match="no host in group database"):
        fleet.read([str(path)])


def test_output_of_a_host_is_split_into_plan_evidence_manifests_and_checksums() -> None:
    a, b = "a" * 64, "b" * 64
    output = ["== plan", '{"profile": "prod"}', "", "== verified", '{"server": "17.6"}', "",
              "== /etc/provision/files.d/backup.json",
              '{"files": [{"path": "/etc/x", "sha256": "' + a + '"}]}', "", "== sums", f"{b}  /etc/x"]  # fmt: skip
    assert Placed().process(output) == {
        "plan": {"profile": "prod"}, "verified": {"server": "17.6"}, "files": {"/etc/x": ("backup", a)}, "damaged": [],
        "sums": {"/etc/x": b},
    }  # fmt: skip


def test_a_bare_host_has_no_plan_and_no_files() -> None:
    output = ["== plan", "", "== verified", "", "== /etc/provision/files.d/*.json", "", "== sums"]
    assert Placed().process(output) == {"plan": {}, "verified": {}, "files": {}, "damaged": [], "sums": {}}


def test_damaged_manifest_and_damaged_plan_do_not_stop_the_audit() -> None:
    output = ["== plan", "{", "== /etc/provision/files.d/tls.json", "not json", "== sums"]
    seen = Placed().process(output)
    assert seen["damaged"] == ["/etc/provision/files.d/tls.json"]
    assert seen["plan"] == {}


def test_a_doctor_that_cannot_answer_says_why() -> None:
    assert Doctor().process(["sh: 1: provision: not found"]) == {"failed": "sh: 1: provision: not found"}
    assert Doctor().process([]) == {"failed": "no output"}
