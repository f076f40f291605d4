"""Convert a host of the old layout, whose description was host.json, backup.json and maintenance.json. Does IO.

Only what `provision verify` found is kept, as evidence; the plan replaces the rest. host.json is removed last, so an
interrupted conversion is completed by the next one.
"""

from __future__ import annotations

import json
from pathlib import Path

from provision import system
from provision.errors import HostError

FOLDER = Path("/etc/provision")
RECORD = "host.json"
OLD = ("backup.json", "maintenance.json", RECORD)


def convert(folder: Path | None = None) -> bool:
    """Remove the files of the old layout; keep `verified` as evidence unless there is some. False on a new host.

    Raises HostError if host.json cannot be read or a file cannot be removed.
    """
    folder = folder or FOLDER
    record = folder / RECORD
    if not record.exists():
        return False
    try:
        verified = _verified(record.read_text())
        if verified and not system.evidence("verified"):
            system.keep("verified", verified)
        for name in OLD:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise HostError("cannot convert the old layout", where=str(folder), seen=str(error), allowed="root") from None
    return True


def _verified(text: str) -> dict[str, object]:
    """Return the member `verified`; {} for a damaged record, which proves nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    verified = found.get("verified") if isinstance(found, dict) else None
    return verified if isinstance(verified, dict) else {}
