#!/usr/bin/python
"""Judge a host's certificates: those in place, and new ones before they are placed. See provision.checks.certificate.

The host's half of the action `tls_certificates`. Reads only.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import certificate

try:
    from ..module_utils import certificate_reader
except ImportError as error:  # python3-cryptography, on a host whose packages are not installed yet
    MISSING = str(error)
else:
    MISSING = ""

DOCUMENTATION = r"""
module: tls_certificates
short_description: Issue, check and place a host's certificates
description:
  - The action plugin of this name creates the CA and the certificates on the controller and places them.
    Its options are C(plan), C(directory), C(passphrase), C(key_type), C(ca_valid_days), C(provided) and C(clients).
  - The module itself, whose options follow, only reads. Needs python3-cryptography.
options:
  authority: {description: File with the CA certificates., required: true, type: path}
  authority_text: {description: Expected contents of that file., required: true, type: str}
  key_type: {description: ecdsa or rsa; a certificate of another type is renewed. Empty is any., default: "", type: str}
  leaves:
    description: The certificates.
    required: true
    type: list
    elements: dict
    suboptions:
      name: {description: Name in the result., required: true, type: str}
      certificate: {description: Path of the certificate., required: true, type: path}
      key: {description: Path of its key., required: true, type: path}
      purpose: {description: Use of the certificate., choices: [server, client, peer], default: server, type: str}
      common_name: {description: Required common name; empty is any., default: "", type: str}
      names: {description: Names and addresses that it must include., default: [], type: list}
      keeper: {description: Required OWNER:GROUP of the key., default: "root:ssl-cert", type: str}
      own_names: {description: Add the host's own names and addresses., default: false, type: bool}
      texts: {description: New C(certificate) and C(key) (PEM) to check against this host's clock., type: dict}
author: The provision developers
"""

EXAMPLES = r"""
- name: Issue and place certificates
  minion.provision.tls_certificates:
    plan: "{{ plan.tls }}"
    directory: "{{ tls_directory }}"
    passphrase: "{{ tls_ca_passphrase }}"
    key_type: ecdsa
    ca_valid_days: 3650
    provided: {certificate: "", key: "", ca: ""}
    clients: []
"""

RETURN = r"""
issued: {description: Names of the certificates that were issued., returned: success, type: list}
changed_paths: {description: Files that were written on the host., returned: success, type: list}
clients: {description: Clients whose certificate was issued., returned: success, type: list}
authority_made: {description: Whether this run created the CA., returned: success, type: bool}
days_left: {description: Days left of each certificate in place before this run., returned: success, type: dict}
leaves:
  description:
    - "Module only. By name: C(problems) of the files in place, C(refused) problems of the new texts, C(absent),
      C(wanting) (must be replaced), C(names), C(days_left)."
  returned: always
  type: dict
"""


def own_names() -> list[str]:
    """Return the host's names and the addresses of its interfaces."""
    shown = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False)  # noqa: S607
    return [socket.gethostname(), socket.getfqdn(), *shown.stdout.split()]


def judged(row: dict[str, Any], authority: Path, root: bytes, key_type: str) -> dict[str, Any]:
    """Judge one certificate of the list: the files in place, and the new texts where there are any."""
    names = dict.fromkeys(
        certificate.canonical(name) for name in [*row["names"], *(own_names() if row["own_names"] else [])]
    )
    leaf = certificate.Leaf(
        certificate=Path(row["certificate"]),
        key=Path(row["key"]),
        names=tuple(names),
        common_name=row["common_name"],
        purpose=row["purpose"],
        keeper=row["keeper"],
    )
    now = time.time()
    seen = certificate.look(leaf, root)
    problems = certificate.judge(leaf, authority, seen, now) + kept(leaf.certificate, 0o644) + closed(leaf, seen)
    differs = content(authority) != root
    problems += [f"{authority}: differs from the inventory's authority"] if differs else kept(authority, 0o644)
    known = seen.certificate if isinstance(seen.certificate, certificate.Certificate) else None
    renew = known is None or certificate.due(known, now) or (bool(key_type) and known.key_type != key_type)
    refused: list[str] = []
    if texts := row["texts"]:
        new = certificate_reader.inspect(
            root, texts["certificate"].encode(), texts["key"].encode(), leaf.purpose, leaf.keeper, 0o600
        )
        refused = certificate.judge(leaf, authority, new, now)
        renew = [content(leaf.certificate), content(leaf.key)] != [
            texts["certificate"].encode(),
            texts["key"].encode(),
        ]
    return {
        "problems": problems,
        "refused": refused,
        "absent": not leaf.certificate.exists() and not leaf.key.exists(),
        "wanting": renew or bool(problems),
        "names": list(names),
        "days_left": certificate.days_left(known, now) if known else None,
    }


def content(path: Path) -> bytes:
    """Return a file's bytes; none where it cannot be read."""
    found = certificate.read(path)
    return b"" if isinstance(found, str) else bytes(found)


def kept(path: Path, mode: int) -> list[str]:
    """Name another owner or mode than a certificate is placed with."""
    if not path.exists():
        return []
    about = path.stat()
    seen = (about.st_uid, about.st_gid, about.st_mode & 0o7777)
    if seen == (0, 0, mode):
        return []
    return [f"{path}: owner {seen[0]}:{seen[1]}, mode {seen[2]:04o}; expected owner 0:0, mode {mode:04o}"]


def closed(leaf: Any, seen: Any) -> list[str]:
    """Name a mode that keeps the key's group, and so the servers, from reading it."""
    if not leaf.keeper or isinstance(seen.key, str) or seen.key.mode & ~0o640 or seen.key.mode == 0o640:
        return []
    return [f"{leaf.key}: mode {seen.key.mode:04o} keeps its group from reading the key; expected 0640"]


def unjudged(row: dict[str, Any]) -> dict[str, Any]:
    """Describe a certificate on a host without python3-cryptography, in check mode: present or absent."""
    paths = Path(row["certificate"]), Path(row["key"])
    absent = not any(path.exists() for path in paths)
    found = {"problems": [], "refused": [], "names": row["names"], "days_left": None}
    return {**found, "absent": absent, "wanting": not all(path.exists() for path in paths)}


class Module(AnsibleModule):
    """A module that keeps its arguments, which hold keys, out of the host's log."""

    def _log_invocation(self) -> None:
        """Log the paths alone."""
        self.log(f"judges {', '.join(row['certificate'] for row in self.params['leaves'])}")


def main() -> None:
    """Run the module."""
    path, text = {"type": "path", "required": True}, {"type": "str", "default": ""}
    module = Module(
        argument_spec={
            "authority": path,
            "authority_text": {"type": "str", "required": True},
            "key_type": {**text, "no_log": False},
            "leaves": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "certificate": path,
                    "key": {**path, "no_log": False},
                    "purpose": {"type": "str", "default": "server", "choices": ["server", "client", "peer"]},
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
    rows = module.params["leaves"]
    if MISSING and not module.check_mode:
        module.fail_json(msg=f"{MISSING}: install python3-cryptography")
    if MISSING:
        module.exit_json(
            changed=False,
            leaves={row["name"]: unjudged(row) for row in rows},
            warnings=["python3-cryptography is not installed yet: installed certificates were not checked"],
        )
    root = module.params["authority_text"].encode()
    authority = Path(module.params["authority"])
    module.exit_json(
        changed=False,
        leaves={row["name"]: judged(row, authority, root, module.params["key_type"]) for row in rows},
    )


if __name__ == "__main__":
    main()
