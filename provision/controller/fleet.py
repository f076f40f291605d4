"""Convert the hosts of an Ansible inventory to pyinfra targets. Runs ansible-inventory.

Keeps only the connection variables and discards all others, including secrets.
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

from provision.controller.inventory import unescape
from provision.controller.machine import run
from provision.controller.varfiles import vault_problem
from provision.errors import UsageError

GROUP = "database"


@dataclass(frozen=True)
class Target:
    """A host by inventory name; `data` holds options of pyinfra's SSH connector."""

    name: str
    data: dict[str, Any]


def read(inventories: Sequence[str], limit: str = "", vault: Sequence[str] = ()) -> list[Target]:
    """Return the hosts of group `database`. Raises UsageError if the inventory is unreadable or the group empty."""
    program = Path(sys.executable).with_name("ansible-inventory")
    words = [str(program), "--list", *(word for each in inventories for word in ("-i", each)), *vault]
    words += ["--limit", limit] if limit else []
    done = run(words, env={**os.environ, "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"})
    where = " ".join(f"-i {shlex.quote(each)}" for each in inventories)
    if done.returncode != 0:
        said = done.stderr.strip()
        raise UsageError(
            "cannot read the inventory", where=where, seen=vault_problem(said) or said[-400:],
            allowed="an Ansible inventory; --vault-password-file if its vault is encrypted",
            run=f"ansible-inventory {where} --graph",
        )  # fmt: skip
    listed = json.loads(done.stdout)
    variables = listed.get("_meta", {}).get("hostvars", {})
    targets = [Target(name, _login(name, variables.get(name, {}))) for name in _members(listed, GROUP)]
    if not targets:
        raise UsageError(
            f"the inventory has no host in group {GROUP}", where=where, run=f"ansible-inventory {where} --graph"
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
        "ssh_port": known.get("ansible_port", known.get("ansible_ssh_port")),
        "ssh_user": known.get("ansible_user"),
        "ssh_key": unescape(known.get("ansible_ssh_private_key_file") or ""),
        "ssh_known_hosts_file": unescape(options.get("userknownhostsfile", "")),
        "ssh_strict_host_key_checking": options.get("stricthostkeychecking", "yes"),
    }
    return {key: value for key, value in found.items() if value}


def _options(text: str) -> dict[str, str]:
    """Parse the `-o Name=value` options of an ssh command line."""
    found, words = {}, shlex.split(text)
    for number, word in enumerate(words):
        given = (
            words[number + 1] if word == "-o" and number + 1 < len(words) else word[2:] if word.startswith("-o") else ""
        )
        name, _, value = given.partition("=")
        if value:
            found[name.lower()] = value
    return found
