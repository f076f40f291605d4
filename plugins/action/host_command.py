"""Controller's half of host_command: shows each change by name, which Ansible's output would leave out."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..plugin_utils.lock import kept
from ..plugin_utils.printable import printable


class ActionModule(ActionBase):
    """Run the module and print a line for each of its `changes`."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        result: dict[str, Any] = printable(
            self._execute_module(
                module_name="minion.provision.host_command",
                module_args={**self._task.args, **kept(self)},
                task_vars=task_vars,
            )
        )
        name = (task_vars or {}).get("inventory_hostname", "?")
        for change in result.get("changes") or []:
            Display().display(f"{name}: {change}")
        return result
