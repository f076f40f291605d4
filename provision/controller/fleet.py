"""The hosts of an Ansible inventory as pyinfra reaches them, so that one inventory serves both. Runs ansible-inventory.

Keeps how to log in and nothing else: whatever secrets the inventory's variables hold are dropped at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision.controller.machine import run
from provision.errors import UsageError

GROUP = "database"


@dataclass(frozen=True)
class Target:
    """A host by its name in the inventory; `data` is what pyinfra's SSH connector takes."""

    name: str
    data: dict[str, Any]


def read(inventories: Sequence[str], limit: str = "", vault: Sequence[str] = ()) -> list[Target]:
    """Read the hosts of the group `database`. Raises UsageError for an inventory that cannot be read or has none."""
    program = Path(sys.executable).with_name("ansible-inventory")
    words = [str(program), "--list", *(word for each in inventories for word in ("-i", each)), *vault]
    words += ["--limit", limit] if limit else []
    done = run(words, env={**os.environ, "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"})
    where = " ".join(f"-i {each}" for each in inventories)
    if done.returncode != 0:
        said = done.stderr.strip()
        raise UsageError(
            "the inventory cannot be read", where=where, seen=said[-400:],
            allowed="an inventory of Ansible; --vault-password-file where its vault is encrypted",
            run=f"ansible-inventory {where} --graph",
        )  # fmt: skip
    listed = json.loads(done.stdout)
    variables = listed.get("_meta", {}).get("hostvars", {})
    targets = [Target(name, _login(name, variables.get(name, {}))) for name in _members(listed, GROUP)]
    if not targets:
        raise UsageError(
            f"the inventory has no host in the group {GROUP}", where=where, run=f"ansible-inventory {where} --graph"
        )
    return targets


def _members(listed: dict[str, Any], group: str) -> list[str]:
    about = listed.get(group, {})
    found = dict.fromkeys(about.get("hosts", []))
    for child in about.get("children", []):
        found |= dict.fromkeys(_members(listed, child))
    return list(found)


def _login(name: str, known: dict[str, Any]) -> dict[str, Any]:
    options = _options(f"{known.get('ansible_ssh_common_args', '')} {known.get('ansible_ssh_extra_args', '')}")
    found = {
        "ssh_hostname": known.get("ansible_host", name),
        "ssh_port": known.get("ansible_port"),
        "ssh_user": known.get("ansible_user"),
        "ssh_key": known.get("ansible_ssh_private_key_file"),
        "ssh_known_hosts_file": options.get("userknownhostsfile"),
        "ssh_strict_host_key_checking": options.get("stricthostkeychecking", "yes"),
    }
    return {key: value for key, value in found.items() if value}


def _options(text: str) -> dict[str, str]:
    """Read the `-o Name=value` of ssh's command line."""
    found, words = {}, shlex.split(text)
    for number, word in enumerate(words):
        given = (
            words[number + 1] if word == "-o" and number + 1 < len(words) else word[2:] if word.startswith("-o") else ""
        )
        name, _, value = given.partition("=")
        if value:
            found[name.lower()] = value
    return found
