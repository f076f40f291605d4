#!/usr/bin/python
"""Check settings against the server's own catalogue before any file is placed; see provision.checks.catalogue."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.provision_catalogue import refusals

DOCUMENTATION = r"""
module: host_settings
short_description: Check settings against the catalogue of the installed server
description:
  - Fails for unknown names and for values that the server does not accept. Changes nothing.
  - Accepts everything if the server is not installed yet.
options:
  settings:
    description: Values by name, as text.
    required: true
    type: dict
  programs:
    description: Directory of the server's programs.
    required: true
    type: path
  configuration:
    description: Directory of C(postgresql.conf).
    required: true
    type: path
  data:
    description: The data directory. A server that runs there checks settings of extensions.
    required: true
    type: path
author: The provision developers
"""

EXAMPLES = r"""
- name: Check postgresql_settings
  minion.provision.host_settings:
    settings: {work_mem: 64MB}
    programs: /usr/lib/postgresql/17/bin
    configuration: /etc/postgresql/17/main
    data: /var/lib/postgresql/17/main
"""

RETURN = r"""
refused: {description: One line for each refused setting., returned: always, type: list}
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
