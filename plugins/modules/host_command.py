#!/usr/bin/python
"""Run one command of the package on a host and read its JSON: changed, warnings and failure as Ansible wants them."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.command import OPTIONS, run

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
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    module.exit_json(**run(module, module.params))


if __name__ == "__main__":
    main()
