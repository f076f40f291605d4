"""Fail with a sentence when a run would do nothing, where Ansible exits 0: a group without hosts, an unknown tag.

Asks no host. Reads the tags of the playbooks and the roles.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils.project import ROOT

TAGS = re.compile(r"\btags: \[([^\]]*)\]")
GENERAL = frozenset(("all", "always", "never", "tagged", "untagged"))
"""Ansible's own words for --tags and --skip-tags."""


def known_tags(root: Path) -> set[str]:
    """Return the tags of the playbooks and of the roles' tasks below a directory."""
    files = [*root.glob("*.yml"), *root.glob("roles/*/tasks/*.yml")]
    return {tag.strip() for path in files for found in TAGS.findall(path.read_text()) for tag in found.split(",")}


def unknown_tags(asked: Iterable[str], known: set[str]) -> str:
    """Return the refusal of tags that no task has; "" for known ones. Pure."""
    wrong = sorted(set(asked) - known - GENERAL)
    if not wrong:
        return ""
    near = [match for tag in wrong for match in difflib.get_close_matches(tag, sorted(known), 1)]
    hint = f" Did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
    choices = ", ".join(sorted(known - GENERAL))
    return f"No task has the tag {', '.join(wrong)}, so nothing was done.{hint} The tags are {choices}."


class ActionModule(ActionBase):
    """Compare the group with the inventory of the run, and its tags with those of the tasks."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return an empty result; the failure names what was given, and the nearest group or tag."""
        super().run(tmp, task_vars)
        given = task_vars or {}
        asked = [*(given.get("ansible_run_tags") or ()), *(given.get("ansible_skip_tags") or ())]
        if refusal := unknown_tags(asked, known_tags(ROOT)):
            raise AnsibleActionFail(refusal)
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
