"""`provision secrets rotate` against a host that never answers, ended from outside."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from provision.controller.vault import Vault, initialise

ROOT = Path(__file__).parents[2]


def test_a_rotation_that_is_ended_puts_the_vault_back(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = {"ansible_host": "127.0.0.1", "ansible_port": silent.getsockname()[1], "ansible_ssh_timeout": 60}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"database": {"hosts": {"db1": host}}}))
        vault = Vault(tmp_path, "x")
        initialise(vault)
        before = vault.read()
        words = ["secrets", "rotate", str(tmp_path), "minion_app", "--vault-password-file", str(key)]
        with subprocess.Popen(
            [str(Path(sys.executable).parent / "provision"), *words], cwd=ROOT, stdout=subprocess.DEVNULL
        ) as running:
            silent.settimeout(60)
            session, _ = silent.accept()  # the run has come to the host
            meanwhile = vault.read()
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 128 + signal.SIGTERM
            session.close()
    assert meanwhile != before
    assert vault.read() == before
