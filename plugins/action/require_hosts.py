"""Fail with a sentence when a playbook's group has no hosts: Ansible would skip the play and exit 0. Asks no host."""

from __future__ import annotations

import difflib
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Compare the group with the inventory of the run."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return an empty result; the failure names the inventory, the group, and the nearest group that has hosts."""
        super().run(tmp, task_vars)
        given = task_vars or {}
        group, groups = str(self._task.args["group"]), given.get("groups") or {}
        if groups.get(group):
            return {"changed": False}
        filled = [name for name, hosts in groups.items() if hosts and name not in ("all", "ungrouped", group)]
        near = difflib.get_close_matches(group, filled, 1)
        hint = f" Did you mean the group {near[0]}, which has hosts?" if near else ""
        sources = ", ".join(str(path) for path in given.get("ansible_inventory_sources") or ())
        raise AnsibleActionFail(
            f"The group {group} of the inventory {sources} has no hosts, so there is nothing to do.{hint} Add a host "
            "to the group in its hosts.yml, or name another inventory with -i. The hosts of make up are in "
            "-i inventories/dev -i .provision/sandbox/inventory.yml."
        )
