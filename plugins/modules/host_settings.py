#!/usr/bin/python
"""Let the server on a host judge settings before any file is placed; see provision.checks.catalogue."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_catalogue import refusals

DOCUMENTATION = r"""
module: host_settings
short_description: Refuse settings that the server's own catalogue does not know or allow
description: Reads only, in check mode too. Where the server is not installed yet nothing is refused.
options:
  settings:
    description: Name to value, as text.
    required: true
    type: dict
  programs:
    description: The server's folder of programs.
    required: true
    type: path
  configuration:
    description: The folder of postgresql.conf.
    required: true
    type: path
  data:
    description: The data directory, which tells whether a server runs.
    required: true
    type: path
author: The provision developers
"""

EXAMPLES = r"""
- name: Judge what the user set
  host_settings:
    settings: {work_mem: 64MB}
    programs: /usr/lib/postgresql/17/bin
    configuration: /etc/postgresql/17/main
    data: /var/lib/postgresql/17/main
"""

RETURN = r"""
refused: {description: One line for each setting that is refused., returned: always, type: list}
"""


def main() -> None:
    """Run the module."""
    paths = {name: {"type": "path", "required": True} for name in ("programs", "configuration", "data")}
    module = AnsibleModule(
        argument_spec={"settings": {"type": "dict", "required": True}, **paths}, supports_check_mode=True
    )
    given = module.params
    refused = refusals(given["settings"], *(Path(given[name]) for name in paths))
    if refused:
        module.fail_json(msg=f"nothing was placed. {' | '.join(refused)}", refused=refused)
    module.exit_json(changed=False, refused=[])


if __name__ == "__main__":
    main()
