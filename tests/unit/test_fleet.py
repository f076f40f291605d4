"""One inventory serves Ansible and the audit: names, addresses, users, keys and the words of ssh."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.checks.finding import Finding, Severity
from provision.controller import fleet
from provision.controller.audit import Doctor, Left, Seen, _reported
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


def test_what_a_host_prints_is_split_into_record_manifests_and_checksums() -> None:
    a, b = "a" * 64, "b" * 64
    output = ["== record", '{"profile": "prod"}', "", "== /etc/provision/files.d/backup.json",
              '{"files": [{"path": "/etc/x", "sha256": "' + a + '"}]}', "", "== sums", f"{b}  /etc/x"]  # fmt: skip
    assert Left().process(output) == {
        "record": {"profile": "prod"}, "files": {"/etc/x": ("backup", a)}, "damaged": [], "there": {"/etc/x": b},
    }  # fmt: skip


def test_a_bare_host_has_left_nothing() -> None:
    output = ["== record", "", "== /etc/provision/files.d/*.json", "", "== sums"]
    assert Left().process(output) == {"record": {}, "files": {}, "damaged": [], "there": {}}


def test_nonsense_in_a_manifest_or_a_record_is_no_crash() -> None:
    output = ["== record", "{", "== /etc/provision/files.d/tls.json", "not json", "== sums"]
    seen = Left().process(output)
    assert seen["damaged"] == ["/etc/provision/files.d/tls.json"]
    assert seen["record"] == {}


def test_a_doctor_that_cannot_answer_says_why() -> None:
    assert Doctor().process(["sh: 1: provision: not found"]) == {"failed": "sh: 1: provision: not found"}
    assert Doctor().process([]) == {"failed": "no output"}


@pytest.mark.parametrize(
    ("doctor", "audit", "expected"),
    [
        ("/etc/x: changed by hand, since 10:00", "/etc/x was changed by hand", True),
        ("/etc/x was changed by hand", "/etc/xy was changed by hand", False),
        ("package etcd is 3.4, 3.5 was verified", "package etcd is 3.4, but 3.5 was verified", True),
        ("package etcd is missing", "package patroni is missing", False),
    ],
)
def test_problem_is_told_once_however_the_doctor_words_it(doctor: str, audit: str, expected: bool) -> None:
    def finding(seen: str, check: str = "files-changed") -> Finding:
        return Finding(check, "files", Severity.WARNING, seen, "", "", "")

    host = Seen("db1", "192.0.2.1", findings=[finding(doctor)])
    assert _reported(host, finding(audit)) is expected
    assert not _reported(host, finding(audit, "files-missing"))
