#!/usr/bin/python
"""Documentation of the action plugin host_report, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_report
short_description: Show a host's report and keep it on the controller
description: Writes C(HOST.json) to O(folder) on the controller and shows the report's C(lines). Contacts no host.
options:
  report:
    description: Output of C(provision verify --json --status).
    required: true
    type: dict
  folder:
    description: Directory on the controller.
    required: true
    type: path
author: The provision developers
"""

EXAMPLES = r"""
- name: Report the host and keep the report on the controller
  minion.provision.host_report:
    report: "{{ __verify_proved }}"
    folder: "{{ verify_reports }}"
"""

RETURN = r"""
msg: {description: The report's lines., returned: always, type: list}
"""
