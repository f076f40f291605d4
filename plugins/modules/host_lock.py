#!/usr/bin/python
"""Release the host lock at the end of a run; host_plan takes it at the beginning."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.lock import held, read, release

DOCUMENTATION = r"""
module: host_lock
short_description: Release the host lock of this run
description:
  - M(minion.provision.host_plan) takes the lock. It is also released when the run's connection and
    the last command on it have ended.
options:
  state:
    description: Requested state of the lock.
    choices: [released]
    default: released
    type: str
  run:
    description: Identity of the run (set by the action plugin).
    type: dict
    default: {}
author: The provision developers
"""

EXAMPLES = r"""
- name: Release the host lock
  minion.provision.host_lock: {state: released}
"""

RETURN = r"""
released: {description: Whether this run held the lock., returned: always, type: bool}
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["released"], "default": "released"},
            "run": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    holder = read()
    mine = held() and holder.get("id") == module.params["run"].get("id")
    if mine and not module.check_mode:
        release(holder["holder"])
    module.exit_json(changed=False, released=mine)


if __name__ == "__main__":
    main()
