"""Long work shows its step and its time on a terminal, and nothing of it on a pipe."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.callback.plain import paragraph
from tests.sandboxes import PROGRAM

ROOT = Path(__file__).parents[2]
WORK = """
import time
from provision.cli._progress import working
with working("reading the repository") as narrate:
    time.sleep(1.8)
    narrate("taking a backup")
    time.sleep(1.8)
    narrate("at once")
print("result")
"""
PLAY = "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - {name: Wait, ansible.builtin.command: sleep 7}\n"
ENVIRONMENT = {**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}


def on_terminal(*words: str | Path, code: int = 0) -> str:
    """Run a program with a terminal as stdout and stderr; return all that it writes there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, env=ENVIRONMENT, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        found = b""
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # Linux reports the end of a terminal as an error
                break
            if not block:
                break
            found += block
    os.close(ours)
    assert run.returncode == code, found
    return found.decode()


def on_pipe(*words: str | Path) -> tuple[str, str]:
    done = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_terminal_shows_the_running_step_and_its_time() -> None:
    said = on_terminal(sys.executable, "-c", WORK)
    assert re.search(r"\rreading the repository: \d s", said)
    assert re.search(r"\rtaking a backup: \d s", said)
    lines = [line.rpartition("\r")[2] for line in said.replace("\r\n", "\n").split("\n")]
    # What remains: steps of a second or more with their time, and the result.
    assert re.fullmatch(r"reading the repository: \d s\ntaking a backup: \d s\nresult\n", "\n".join(lines))


def test_pipe_gets_steps_without_times() -> None:
    assert on_pipe(sys.executable, "-c", WORK) == ("result\n", "taking a backup\nat once\n")


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(("command", "step"), [("verify", "verifying the database"), ("doctor", "checking")])
def test_waiting_for_a_database_is_shown(silent: int, command: str, step: str) -> None:
    url = f"postgresql://x@127.0.0.1:{silent}/x?connect_timeout=3"
    said = on_terminal(PROGRAM, command, "--database", url, code=3 if command == "doctor" else 1)
    assert re.search(rf"\r{step}: [1-3] s", said)


def test_reading_an_inventory_is_shown(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("#!/bin/sh\nsleep 2\necho '{}'\n")
    hosts.chmod(0o755)
    for words, code in ((("secrets", "rotate", hosts, "minion"), 2), (("audit", "-i", hosts), 2),
                        (("connect", "-i", hosts), 2), (("plan", "-i", hosts), 2)):  # fmt: skip
        said = on_terminal(PROGRAM, *words, code=code)
        assert re.search(r"\rreading the inventory: \d s", said), words


def test_long_task_of_a_playbook_shows_its_time_on_a_terminal_alone(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    words = (Path(sys.executable).with_name("ansible-playbook"), tmp_path / "play.yml")
    said = on_terminal(*words)
    assert re.search(r"\x1b\[K  Wait: [5-9] s\r", said)
    assert "Wait: 4 s" not in said
    assert re.search(r"Wait: \d+ s\r\x1b\[K\r\nTASK \[Wait\]", said)  # the result replaces the time
    piped = "".join(on_pipe(*words))
    assert "\x1b" not in piped
    assert "Wait:" not in piped


def test_text_of_a_host_forges_no_line_of_the_output() -> None:
    shown = paragraph(
        "minion.provision.host_plan", {"failed": True, "msg": "port taken by \x1b[2K\nok: [db1] all is well"}
    )
    assert shown == "port taken by \\x1b[2K\n  ok: [db1] all is well"
    assert paragraph("ansible.builtin.command", {"failed": True, "msg": "x"}) == ""
    assert paragraph("minion.provision.host_plan", {"failed": True, "msg": "x", "stdout": "y"}) == ""
