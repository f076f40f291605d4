"""Controller's half of host_lock: says which run asks."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..plugin_utils.lock import identity


class ActionModule(ActionBase):
    """Call the module with this run's identity."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        super().run(tmp, task_vars)
        arguments = {**self._task.args, "run": identity()}
        result: dict[str, Any] = self._execute_module(
            module_name="minion.provision.host_lock", module_args=arguments, task_vars=task_vars
        )
        return result
