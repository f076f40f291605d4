"""Show a host's report at the end of a run, and keep it on the controller. Asks no host."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

INTERNAL = ("changed", "failed", "invocation", "rc", "ansible_facts", "warnings", "deprecations")


class ActionModule(ActionBase):
    """Write FOLDER/HOST.json and give its `lines` as the task's message."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the lines, shown whatever the verbosity."""
        super().run(tmp, task_vars)
        name = (task_vars or {})["inventory_hostname"]
        report = {key: value for key, value in self._task.args["report"].items() if key not in INTERNAL}
        folder = Path(self._task.args["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as stream:
            stream.write(json.dumps(report, indent=4, sort_keys=True, default=str) + "\n")
            os.fchmod(stream.fileno(), 0o644)
        Path(stream.name).replace(folder / f"{name}.json")
        return {"changed": False, "msg": report.get("lines", []), "_ansible_verbose_always": True}
