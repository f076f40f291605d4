#!/usr/bin/python
"""Run one command of the package on a host and read its JSON: changed, warnings and failure as Ansible wants them."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import lock
from ..module_utils.command import OPTIONS, run

DOCUMENTATION = r"""
module: host_command
short_description: Run a command that prints JSON and report its changes
description:
  - The result includes every member of the JSON object. The task is changed if C(changed) is true, or C(changes) or
    C(applied) is not empty. Shows its C(warnings) and, after a failure, the command's standard error.
  - In check mode, runs C(check_argv) instead, which must change nothing. Without it, the task is skipped.
options:
  argv:
    description: The command and its arguments.
    required: true
    type: list
    elements: str
  check_argv:
    description: The command for check mode. Without it, check mode skips the task unless C(check_says) is set.
    type: list
    elements: str
    default: []
  check_says:
    description: Change to report in check mode if there is no C(check_argv).
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
  run:
    description: Identity of the run, which must still have the host lock (set by the action plugin).
    type: dict
    default: {}
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
    options = {**OPTIONS, "run": {"type": "dict", "default": {}}}
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    if not module.check_mode and (refusal := lock.keep(module.params["run"])):
        module.fail_json(msg=f"{refusal}; {module.params['argv'][0]} was not run")
    module.exit_json(**run(module, module.params))


if __name__ == "__main__":
    main()
