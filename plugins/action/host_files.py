"""Controller's half of host_files: renders the templates of a set, then runs the module with their contents.

Without the lookup `template` in variables, which copies every variable of the host for each file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

from ..plugin_utils.lock import kept
from ..plugin_utils.printable import printable

MANAGED = "Ansible managed"
"""Ansible's own default; a variable ansible_managed replaces it."""


class ActionModule(ActionBase):
    """Replace `template` and `variables` of each file by `content`."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result. Raises AnsibleError for a template that is missing or cannot be rendered."""
        super().run(tmp, task_vars)
        arguments = {**self._task.args, **kept(self)}
        if arguments.get("files"):
            arguments["files"] = [self._rendered(file, task_vars or {}) for file in arguments["files"]]
        result: dict[str, Any] = printable(
            self._execute_module(module_name="minion.provision.host_files", module_args=arguments, task_vars=task_vars)
        )
        return result

    def _rendered(self, file: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in file.items() if name not in ("template", "variables")}
        if not file.get("template"):
            return rest
        path = Path(self._find_needle("templates", file["template"]))
        templar = self._templar.copy_with_new_env(
            searchpath=[str(path.parent), str(path.resolve().parent.parent / "toolkit")],
            available_variables={"ansible_managed": MANAGED, **variables, **(file.get("variables") or {})},
        )
        text = trust_as_template(self._loader.get_text_file_contents(str(path)))
        # As the module template does: a line that holds only a block leaves no empty line.
        return rest | {"content": templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True})}
