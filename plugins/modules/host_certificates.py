#!/usr/bin/python
"""Judge a host's certificates, those that are placed or those that are to be; see provision.checks.certificate."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_certificate import Certificate, Leaf, canonical, days_left, due, judge, look

DOCUMENTATION = r"""
module: host_certificates
short_description: Tell what is wrong with a host's certificates, and which are to be renewed
description:
  - Reads only, in check mode too.
  - With O(leaves[].texts) what is to be placed is judged instead, as if it were there with the wanted owner.
options:
  authority: {description: File with the certificates of the authority., required: true, type: path}
  authority_text: {description: What that file is to hold; empty judges what it holds., default: "", type: str}
  key_type: {description: ecdsa or rsa; a key of another type is to be renewed., default: "", type: str}
  leaves:
    description: The certificates.
    required: true
    type: list
    elements: dict
    suboptions:
      name: {description: Name in the result., required: true, type: str}
      certificate: {description: Its file., required: true, type: path}
      key: {description: File of its key., required: true, type: path}
      purpose: {description: server or client., default: server, type: str}
      common_name: {description: Common name that it must have; empty is any., default: "", type: str}
      names: {description: Names and addresses that it must cover., default: [], type: list}
      keeper: {description: OWNER:GROUP that the key must have; empty is any., default: "root:ssl-cert", type: str}
      own_names: {description: Add those that the host knows of itself., default: false, type: bool}
      texts: {description: The C(certificate) and C(key) that are to be placed., type: dict}
author: The provision developers
"""

EXAMPLES = r"""
- name: Judge the server's certificate
  host_certificates:
    authority: /etc/provision/tls/ca.crt
    leaves:
      - {name: server, certificate: /etc/provision/tls/server.crt, key: /etc/provision/tls/server.key, own_names: true}
"""

RETURN = r"""
leaves: {description: "By name: problems, names, days_left, wanting (anew), fingerprint.", returned: always, type: dict}
"""


def own_names() -> list[str]:
    """Give what the host calls itself: host name, full name, and the addresses of its interfaces."""
    shown = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False)  # noqa: S607
    return [socket.gethostname(), socket.getfqdn(), *shown.stdout.split()]


def judged(row: dict[str, Any], authority: Path, key_type: str) -> dict[str, Any]:
    """Judge one certificate of the list."""
    names = dict.fromkeys(canonical(name) for name in [*row["names"], *(own_names() if row["own_names"] else [])])
    leaf = Leaf(
        certificate=Path(row["certificate"]),
        key=Path(row["key"]),
        names=tuple(names),
        common_name=row["common_name"],
        purpose=row["purpose"],
        keeper=row["keeper"],
    )
    now = time.time()
    if row["texts"]:
        problems, seen = _candidate(leaf, row["texts"], authority, now)
    else:
        seen = look(leaf, authority)
        problems = judge(leaf, authority, seen, now)
    problems += [] if row["texts"] else _open(leaf.certificate)
    known = seen.certificate if isinstance(seen.certificate, Certificate) else None
    renew = known is None or due(known, now) or (bool(key_type) and known.key_type != key_type)
    return {
        "problems": problems,
        "names": list(names),
        "days_left": days_left(known, now) if known else None,
        "wanting": renew or bool(problems),
        "fingerprint": known.fingerprint if known else "",
    }


def _open(path: Path) -> list[str]:
    """Name what keeps others from reading a certificate, or lets them replace it."""
    if not path.exists():
        return []
    about = path.stat()
    if about.st_mode & 0o444 != 0o444:
        return [f"{path}: mode {about.st_mode & 0o7777:04o} keeps others from reading it: allowed is 0644"]
    if about.st_mode & 0o022 or about.st_uid != 0:
        return [f"{path}: others than root may replace it: allowed is root, 0644"]
    return []


def _candidate(leaf: Leaf, texts: dict[str, str], authority: Path, now: float) -> tuple[list[str], Any]:
    """Judge texts in a folder of root's own, with the names that the files will have."""
    with tempfile.TemporaryDirectory(prefix=".provision-", dir="/run" if Path("/run").is_dir() else None) as folder:
        there = replace(leaf, certificate=Path(folder, "certificate"), key=Path(folder, "key"))
        there.certificate.write_text(texts["certificate"])
        there.key.touch(0o600)
        there.key.write_text(texts["key"])
        seen = look(there, authority)
        if not isinstance(seen.key, str):  # it will be placed with the wanted keeper
            seen = replace(seen, key=replace(seen.key, keeper=leaf.keeper))
        found = judge(leaf, authority, seen, now)
    return [problem.replace(f"{folder}/", "") for problem in found], seen


def main() -> None:
    """Run the module."""
    path, text = {"type": "path", "required": True}, {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "authority": path,
            "authority_text": text,
            "key_type": {**text, "no_log": False},
            "leaves": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "certificate": path,
                    "key": {**path, "no_log": False},
                    "purpose": {"type": "str", "default": "server", "choices": ["server", "client"]},
                    "common_name": text,
                    "names": {"type": "list", "elements": "str", "default": []},
                    "keeper": {"type": "str", "default": "root:ssl-cert"},
                    "own_names": {"type": "bool", "default": False},
                    "texts": {
                        "type": "dict",
                        "options": {"certificate": {"type": "str"}, "key": {"type": "str", "no_log": True}},
                    },
                },
            },
        },
        supports_check_mode=True,
    )
    authority, wanted = Path(module.params["authority"]), module.params["authority_text"]
    os.umask(0o077)
    found = {}
    with tempfile.TemporaryDirectory(prefix=".provision-") as folder:
        trusted = authority
        if wanted:
            trusted = Path(folder, authority.name)
            trusted.write_text(wanted)
        for row in module.params["leaves"]:
            about = judged(row, trusted, module.params["key_type"])
            about["problems"] = [each.replace(str(trusted), str(authority)) for each in about["problems"]]
            if not row["texts"]:
                other = wanted and (not authority.exists() or authority.read_text() != wanted)
                about["problems"] += [f"{authority}: is not the one of this inventory"] if other else _open(authority)
                about["wanting"] = about["wanting"] or bool(about["problems"])
            found[row["name"]] = about
    module.exit_json(changed=False, leaves=found)


if __name__ == "__main__":
    main()
