"""Ansible's default output, with each refusal and failure of this project as one paragraph.

Ansible 2.19 shows such a message twice, the second time as JSON, between an excerpt of the role and a path. Neither
helps: the message names the variable or the command. Everything else, and every run with -v, is as Ansible shows it.
"""

from __future__ import annotations

from typing import Any

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: plain
type: stdout
short_description: default output, with refusals as one paragraph
description:
  - Shows the message of a failed task without JSON and without an excerpt of the role, where the task belongs to this
    collection or is C(ansible.builtin.fail), and has nothing but a message to show.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

OURS = ("minion.provision.", "ansible.builtin.fail", "ansible.builtin.assert")
SHOWN = frozenset(("changed", "failed", "msg", "exception", "warnings", "deprecations", "invocation"))
"""Keys of a result without anything else to show."""


def paragraph(action: str, result: dict[str, Any]) -> str:
    """Return the message of a failure that a paragraph can show; "" for every other result. Pure."""
    keys = {key for key in result if not key.startswith("_")}
    message = result.get("msg")
    plain = action.startswith(OURS) and keys <= SHOWN and isinstance(message, str)
    return message.strip() if plain and isinstance(message, str) else ""


class CallbackModule(Default):
    """The default callback with another form of failures."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "minion.provision.plain"

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Show a failed task: its banner, the host and the message."""
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
