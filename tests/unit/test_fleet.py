"""One inventory serves Ansible and the audit: names, addresses, users, keys and the words of ssh."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from provision.controller import audit, fleet
from provision.controller.audit import Doctor, Placed
from provision.errors import UsageError
from provision.plan import load

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


@pytest.fixture
def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan, evidence, and the manifest of one file in a directory in place of the host's."""
    (tmp_path / "plan.json").write_text('{"name": "db1"}')
    (tmp_path / "pg_hba.conf").write_text("local")
    rows = [{"path": str(tmp_path / "pg_hba.conf"), "sha256": "0"}]
    (tmp_path / "files.d").mkdir()
    (tmp_path / "files.d/postgresql.json").write_text(json.dumps({"files": rows}, indent=2))
    monkeypatch.setattr(load, "PATH", tmp_path / "plan.json")
    monkeypatch.setattr(audit, "VERIFIED", str(tmp_path / "verified.json"))
    return tmp_path


def looked_at(folder: Path) -> dict[str, object]:
    """Run the command of the audit in a shell; 8 s is less than any of its limits."""
    command = Placed().command().replace("/etc/provision/files.d", str(folder / "files.d"))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=8)
    return Placed().process(done.stdout.splitlines())


def test_audit_reads_evidence_and_checksums(placed: Path) -> None:
    (placed / "verified.json").write_text('{\n  "server": "17.6"\n}\n')
    seen = looked_at(placed)
    assert seen["verified"] == {"server": "17.6"}
    assert seen["plan"] == {"name": "db1"}
    assert list(seen["sums"]) == [str(placed / "pg_hba.conf")]  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["verified.json", "pg_hba.conf"])
def test_pipe_and_link_of_postgres_do_not_stop_the_audit(name: str, placed: Path) -> None:
    """Attack: root waits for the writer of a pipe, or reads a device or a file of root through a link."""
    (placed / name).unlink(missing_ok=True)
    os.mkfifo(placed / name)
    assert looked_at(placed)["plan"] == {"name": "db1"}
    (placed / name).unlink()
    (placed / name).symlink_to("/dev/zero")
    assert looked_at(placed)["plan"] == {"name": "db1"}
    (placed / name).unlink()
    (placed / name).symlink_to(placed / "plan.json")
    seen = looked_at(placed)
    assert seen["verified"] == {}
    assert (str(placed / name) in seen["sums"]) is False  # type: ignore[operator]


def test_evidence_cannot_replace_the_plan_of_the_audit(placed: Path) -> None:
    """Attack: the heading of another part in a text that the group postgres writes."""
    (placed / "verified.json").write_text('{}\n== plan\n{"name": "forged"}\n== /x/forged.json\n{"files": []}\n')
    assert looked_at(placed)["plan"] == {"name": "db1"}
    (placed / "verified.json").write_text("x" * 3 * audit.MOST_BYTES)
    assert looked_at(placed)["verified"] == {}
