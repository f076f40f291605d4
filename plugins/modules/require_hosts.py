#!/usr/bin/python
"""Documentation of the action plugin require_hosts, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: require_hosts
short_description: Fail when a run would do nothing
description:
  - Ansible skips a play without hosts, and tags that no task has, and exits 0. This module fails instead.
options:
  group:
    description: Name of the group.
    required: true
    type: str
author: The provision developers
"""

EXAMPLES = r"""
- name: Refuse an empty group
  minion.provision.require_hosts: {group: database}
"""

RETURN = r"""
"""
