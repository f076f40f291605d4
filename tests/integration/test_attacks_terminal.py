"""The service user against the terminal of root, who runs `provision` on the host.

Attack: a program of postgres that a command of root starts (its .psqlrc, a line of its pgBackRest configuration) opens
the terminal and types a command into it, which root's shell runs when the command has ended.
"""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

EVIL = ": <>/dev/tty && printf 'has the %s' terminal"
"""What must be opened before TIOCSTI; newer kernels may forbid that one by themselves (dev.tty.legacy_tiocsti)."""


def on_a_terminal(code: str) -> str:
    """Run Python code as the leader of a session with a terminal of its own; return what it printed."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-c", code])  # noqa: S606 - of the test itself
    text = b""
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # EIO: the last program has closed it
            break
        if not read:
            break
        text += read
    os.waitpid(child, 0)
    os.close(terminal)
    return text.decode()


def started(options: str) -> str:
    words = f"'sh', '-c', {EVIL!r}"
    return on_a_terminal(f"from provision import system; print(system.run({words}, check=False, {options}))")


def test_program_of_root_has_the_terminal() -> None:
    assert "has the terminal" in started("user=''")


@pytest.mark.parametrize("options", ["user='nobody'", "detached=True"])
def test_program_of_another_user_has_no_terminal(options: str) -> None:
    said = started(options)
    assert "has the terminal" not in said
    assert "/dev/tty: No such device or address" in said


@pytest.mark.parametrize("user", ["nobody", ""])
def test_program_of_another_user_does_not_read_root_s_input(user: str) -> None:
    code = f"from provision import system; print(system.run('readlink', '/proc/self/fd/0', user={user!r}).stdout)"
    assert ("/dev/null" in on_a_terminal(code)) is bool(user)


def test_running_program_has_no_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tmp_path.chmod(0o777)
    log.touch()
    log.chmod(0o666)
    words = f"'sh', '-c', ': </dev/tty && echo open; sleep 0.1', log=Path({str(log)!r}), directory=Path('/')"
    for user, opened in (("nobody", False), ("", True)):
        on_a_terminal(
            "from pathlib import Path; from provision import system\n"
            f"with system.running({words}, user={user!r}) as program: program.wait()"
        )
        assert ("open" in log.read_text().splitlines()) is opened
