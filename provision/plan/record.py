"""The record of the old layout, /etc/provision/host.json. Only provision.checks still reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from provision.errors import HostError

PATH = Path("/etc/provision/host.json")


def read(path: Path = PATH) -> dict[str, Any]:
    """Give the record. Raises HostError where this is no host of ours."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise HostError(
            "this host does not know what it is",
            where=str(path),
            seen=str(error),
            allowed="a host that site.yml has converged, read by root or a member of postgres",
            run="ansible-playbook site.yml -i inventories/dev --tags toolkit",
        ) from None
    if not isinstance(found, dict):
        raise HostError("this host's record is damaged", where=str(path), run="site.yml --tags toolkit")
    return found
