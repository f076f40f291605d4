"""Ansible's default output, with each refusal and failure of this project as one paragraph, and the time of long tasks.

Ansible 2.19 shows such a message twice, the second time as JSON, between an excerpt of the role and a path. Neither
helps: the message names the variable or the command. Everything else, and every run with -v, is as Ansible shows it.
On a terminal, a task that takes more than five seconds shows its name and time until its result replaces it: without
skipped hosts (display_skipped_hosts), Ansible names a task only when it has a result.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from typing import Any

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

from ..plugin_utils.printable import printable

DOCUMENTATION = """
name: plain
type: stdout
short_description: default output, with refusals as one paragraph and the time of long tasks
description:
  - Shows the message of a failed task without JSON and without an excerpt of the role, where the task belongs to this
    collection or is C(ansible.builtin.fail), and has nothing but a message to show.
  - On a terminal, shows the time of a task that takes more than five seconds.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

OURS = ("minion.provision.", "ansible.builtin.fail", "ansible.builtin.assert")
SHOWN = frozenset(("changed", "failed", "msg", "exception", "warnings", "deprecations", "invocation"))
"""Keys of a result without anything else to show."""
SHOWN_AFTER_S = 5


def paragraph(action: str, result: dict[str, Any]) -> str:
    """Return the message of a failure that a paragraph can show; "" for every other result. Pure.

    Its further lines are indented, so that no text from a host looks like a line of Ansible.
    """
    keys = {key for key in result if not key.startswith("_")}
    message = result.get("msg")
    if not (action.startswith(OURS) and keys <= SHOWN and isinstance(message, str)):
        return ""
    return str(printable(message.strip())).replace("\n", "\n  ")


class Clock(threading.Thread):
    """Shows the running task and its seconds on the terminal.

    Writes to the descriptor without a lock, which a forked worker could inherit locked, and returns the cursor to the
    start of the line, where Ansible's next line begins.
    """

    def __init__(self) -> None:
        """Show nothing until a task begins."""
        super().__init__(daemon=True)
        self.since, self.name = 0.0, ""

    def run(self) -> None:
        """Show the time of the running task each second, from the fifth on."""
        while True:
            time.sleep(1)
            since = self.since
            if since and (seconds := time.monotonic() - since) >= SHOWN_AFTER_S:
                text = f"  {self.name}: {seconds:.0f} s"[: shutil.get_terminal_size().columns - 1]
                os.write(2, f"\x1b[K{text}\r".encode())

    def begin(self, name: str) -> None:
        """A task begins."""
        self.since, self.name = time.monotonic(), str(printable(name, lines=False))

    def clear(self, *, over: bool = False) -> None:
        """Remove the time: a line of Ansible follows."""
        if over:
            self.since = 0.0
        os.write(2, b"\x1b[K")


class CallbackModule(Default):
    """The default callback with another form of failures, and a clock on a terminal."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "minion.provision.plain"

    def __init__(self) -> None:
        """Start the clock, if the output goes to a terminal."""
        super().__init__()
        self._clock = Clock() if sys.stdout.isatty() and sys.stderr.isatty() else None
        if self._clock:
            self._clock.start()

    def _clear(self, *, over: bool = False) -> None:
        if self._clock:
            self._clock.clear(over=over)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Begin a task."""
        self._clear()
        super().v2_playbook_on_task_start(task, is_conditional)
        if self._clock:
            self._clock.begin(task.get_name())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Begin a handler."""
        self._clear()
        super().v2_playbook_on_handler_task_start(task)
        if self._clock:
            self._clock.begin(task.get_name())

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Begin a play."""
        self._clear(over=True)
        super().v2_playbook_on_play_start(play)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Show the recap."""
        self._clear(over=True)
        super().v2_playbook_on_stats(stats)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Show a task that succeeded."""
        self._clear()
        super().v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Show a task that was skipped."""
        self._clear()
        super().v2_runner_on_skipped(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Show a host that does not answer."""
        self._clear()
        super().v2_runner_on_unreachable(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Show a failed task: its banner, the host and the message."""
        self._clear()
        task = getattr(result, "task", None) or result._task
        found = getattr(result, "result", None) or result._result
        message = "" if self._display.verbosity or task.loop else paragraph(task.action, found)
        if not message:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        if self._last_task_banner != task._uuid:
            self._print_task_banner(task)
        host = getattr(result, "host", None) or result._host
        stderr = self.get_option("display_failed_stderr")
        self._display.display(f"fatal: [{host.get_name()}]: {message}", color=constants.COLOR_ERROR, stderr=stderr)
        if ignore_errors:
            self._display.display("...ignoring", color=constants.COLOR_SKIP)
