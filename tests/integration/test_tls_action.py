"""The action tls_certificates in check mode on this machine: what it would do, what it refuses, and what it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.authority import Authority
from tests.contract.repository import ROOT

SECRET = "a passphrase for tests"  # noqa: S105
KEPT = "nothing was placed; the old certificate is still served"


class Play:
    """A play of one task on this machine, with the collection as it lies in this checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, folder / "etc"
        self.authority = folder / "prod" / "tls"
        collection = folder / "ansible_collections" / "minion" / "provision"
        collection.parent.mkdir(parents=True)
        collection.symlink_to(ROOT)

    def run(self, provided: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        """Run it in check mode; give the task's result and what was printed."""
        rows = [self._row("server", common_name="", names=["db1"]), self._row("pooler-client", purpose="client")]
        plan = {"enabled": True, "ca": str(self.files / "ca.crt"), "valid_days": 397, "certificates": rows}
        arguments = {"directory": str(self.authority), "passphrase": SECRET, "key_type": "ecdsa", "ca_valid_days": 10}
        task = {**arguments, "plan": plan, "provided": provided or {}, "clients": ["reporter"], **options}
        result = self.folder / "result.json"
        tasks: list[dict[str, Any]] = [
            {"minion.provision.tls_certificates": task, "register": "found", "ignore_errors": True},
            {"ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": str(result)}, "check_mode": False},
        ]
        play = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
        (self.folder / "play.yml").write_text(json.dumps(play))
        (self.folder / "ansible.cfg").touch()
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder),
        }
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i",
            "localhost,",
            "-c",
            "local",
            "--check",
        ]
        command += ["--diff", "-e", f"ansible_python_interpreter={sys.executable}", str(self.folder / "play.yml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert SECRET not in done.stdout
        assert "PRIVATE KEY" not in done.stdout
        assert result.exists(), done.stdout + done.stderr
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    def _row(self, name: str, **fields: Any) -> dict[str, Any]:
        files = {"certificate": str(self.files / f"{name}.crt"), "key": str(self.files / f"{name}.key")}
        row = {"name": name, "purpose": "server", "common_name": "minion_pooler", "names": [], "own_names": False}
        return {**row, **files, **fields}


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return Play(tmp_path)


def test_check_mode_lists_every_file_of_a_fresh_host_and_writes_none(play: Play) -> None:
    result = play.run()
    assert (result["changed"], result["authority_made"], result["clients"]) == (True, True, ["reporter"])
    assert result["issued"] == ["pooler-client", "server"]
    names = ["ca.crt", "server.crt", "server.key", "pooler-client.crt", "pooler-client.key"]
    assert result["changed_paths"] == [str(play.files / name) for name in names]
    after = {Path(each["after_header"]).name: each["after"] for each in result["diff"]}
    assert after["server.crt"] == "# root:root 0644\nissued by the run\n"
    assert after["server.key"] == "# root:ssl-cert 0640\n(secret)\n"
    assert not play.files.exists()
    assert not play.authority.parent.exists()


def test_without_tls_there_is_no_round_trip(play: Play) -> None:
    result = play.run(plan={"enabled": False})
    assert (result["skipped"], result["changed"]) == (True, False)


def test_bad_certificates_in_place_are_named_with_their_fate(play: Play) -> None:
    play.files.mkdir()
    Authority("a stranger").issue("db2", begins=-10, ends=-1).write(play.files, "server")
    said = "\n".join(play.run()["warnings"])
    assert f"{play.files}/server.crt: expired on" in said
    assert f"{play.files}/server.crt: valid for db2, not for db1; to be replaced" in said
    assert "pooler-client" not in said  # absent: nothing to warn about


def test_a_bad_provided_certificate_is_refused_by_the_host(play: Play, tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue("db2", begins=-10, ends=-1).write(tmp_path, "own")
    (tmp_path / "root.crt").write_text(authority.text)
    provided = {"certificate": str(certificate), "key": str(key), "ca": str(tmp_path / "root.crt")}
    result = play.run(provided)
    assert result["failed"] is True
    assert f"{play.files}/server.crt: expired on" in result["msg"]
    assert "server.crt: valid for db2, not for db1" in result["msg"]
    assert result["msg"].endswith(KEPT)
    key.chmod(0o644)
    assert play.run(provided)["msg"] == (
        f"tls_provided_key {key}: mode 0644 gives other users access to the key; expected 0600\n{KEPT}"
    )
