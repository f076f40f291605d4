#!/usr/bin/python
"""Run one command of the package on a host and read its JSON: changed, warnings and failure as Ansible wants them."""

from __future__ import annotations

import json
import subprocess

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_command
short_description: Run a command that prints JSON, and report what it says
description:
  - The result has every member of the JSON object. The task is changed when the object says C(changed), or lists
    C(changes) or C(applied). Its C(warnings) are shown. A failure shows what the command wrote to standard error.
  - In check mode C(check_argv) is run instead, which must change nothing; without it the task is skipped.
options:
  argv:
    description: The command and its arguments.
    required: true
    type: list
    elements: str
  check_argv:
    description: The command of check mode. Without it the task is skipped there, unless C(check_says) is set.
    type: list
    elements: str
    default: []
  check_says:
    description: What check mode reports as a change where there is no C(check_argv).
    type: str
    default: ""
  stdin:
    description: Standard input, for secrets. A mapping is written as JSON.
    type: raw
    no_log: true
  pending_rc:
    description: Exit codes that mean "would change" in check mode.
    type: list
    elements: int
    default: []
author: The provision developers
"""

EXAMPLES = r"""
- name: Start or reload PostgreSQL and report pending restarts
  minion.provision.host_command:
    argv: [provision, server, apply, --json]
"""

RETURN = r"""
rc: {description: Exit code., returned: when run, type: int}
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str", "required": True},
            "check_argv": {"type": "list", "elements": "str", "default": []},
            "check_says": {"type": "str", "default": ""},
            "stdin": {"type": "raw", "no_log": True},
            "pending_rc": {"type": "list", "elements": "int", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    argv = given["check_argv"] if module.check_mode else given["argv"]
    if not argv:
        if not (module.check_mode and given["check_says"]):
            module.exit_json(changed=False, skipped=True)
        module.exit_json(changed=True, msg=given["check_says"], diff={"prepared": given["check_says"]})
    stdin = given["stdin"] or ""
    text = stdin if isinstance(stdin, str) else json.dumps(stdin)
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        module.fail_json(msg=f"{argv[0]} is not installed on this host: run site.yml with --tags toolkit", rc=127)
    pending = module.check_mode and done.returncode in given["pending_rc"]
    if done.returncode and not pending:
        module.fail_json(msg=(done.stderr or done.stdout).strip(), rc=done.returncode)
    try:
        said = json.loads(done.stdout or "{}")
    except ValueError:
        module.fail_json(msg=f"{' '.join(argv[:4])} printed no JSON: {done.stdout[:200]!r}", rc=done.returncode)
    for warning in said.pop("warnings", None) or []:
        module.warn(warning)
    changed = pending or bool(said.get("changed") or said.get("changes") or said.get("applied"))
    module.exit_json(**{**said, "changed": changed, "rc": done.returncode})


if __name__ == "__main__":
    main()
