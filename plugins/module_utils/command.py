"""Run one command that prints a JSON object, and report it as Ansible does: changed, warnings, failure."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from .quoting import visible

OPTIONS: dict[str, Any] = {
    "argv": {"type": "list", "elements": "str", "required": True},
    "check_argv": {"type": "list", "elements": "str", "default": []},
    "check_says": {"type": "str", "default": ""},
    "stdin": {"type": "raw", "no_log": True},
    "pending_rc": {"type": "list", "elements": "int", "default": []},
}
"""Argument specification of a command; host_command documents it."""


def run(module: AnsibleModule, given: Mapping[str, Any]) -> dict[str, Any]:
    """Run the command and return its result; `skipped` where check mode has none. Fails the module if it fails."""
    argv = given["check_argv"] if module.check_mode else given["argv"]
    if not argv:
        if not (module.check_mode and given["check_says"]):
            return {"changed": False, "skipped": True}
        return {"changed": True, "msg": given["check_says"], "diff": {"prepared": given["check_says"]}}
    stdin = given["stdin"] or ""
    text = stdin if isinstance(stdin, str) else json.dumps(stdin)
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, umask=0o022)  # noqa: S603
    except FileNotFoundError:
        module.fail_json(msg=f"{argv[0]} is not installed on this host: run site.yml with --tags toolkit", rc=127)
    pending = module.check_mode and done.returncode in given["pending_rc"]
    if done.returncode and not pending:
        module.fail_json(msg=visible((done.stderr or done.stdout).strip(), lines=True), rc=done.returncode)
    try:
        said = json.loads(done.stdout or "{}")
    except ValueError:
        module.fail_json(msg=f"{' '.join(argv[:4])} printed no JSON: {done.stdout[:200]!r}", rc=done.returncode)
    for warning in said.pop("warnings", None) or []:
        module.warn(visible(str(warning)))
    changed = pending or bool(said.get("changed") or said.get("changes") or said.get("applied"))
    return {**said, "changed": changed, "rc": done.returncode}
