"""What a host knows of itself: /etc/provision/host.json, written by the toolkit role and by `provision verify`.

Reads and writes that one file. Holds no secrets.
"""

from __future__ import annotations

import json
import os
import tempfile
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


def note(member: str, value: Any, path: Path = PATH) -> bool:
    """Set one member, atomically and with the file's owner and mode kept; False when it was so already."""
    known = read(path)
    value = json.loads(json.dumps(value))  # as it will be read: a tuple is a list by then
    if known.get(member) == value:
        return False
    known[member] = value
    about = path.stat()
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as stream:
        # As Ansible's to_nice_json writes it, so that the role's next run finds its own file unchanged.
        stream.write(json.dumps(known, indent=4, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
        os.fchown(stream.fileno(), about.st_uid, about.st_gid)
        os.fchmod(stream.fileno(), about.st_mode & 0o7777)
    Path(stream.name).replace(path)
    return True
