"""Evidence of a usable backup: the last restore test of this host. Reads one file, changes nothing.

Only a backup that a restore test restored counts (`provision backup status` records it with its time).
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from provision import secure_path

BACKUP = Path("/var/lib/provision/backup.json")
FRESH_H = 24.0
"""Hours for which a restore test counts: later changes are in the archived WAL."""

LOCAL = ("", "localhost", "127.0.0.1", "::1")


def is_here(host: str) -> bool:
    """Return whether libpq's `host` (a name, an address, or the directory of a socket) is this machine."""
    return host.startswith("/") or host in LOCAL


def doubt(host: str, path: Path = BACKUP, now: datetime.datetime | None = None) -> str:
    """Return why there is no recent restore-tested backup of the database on `host`; empty if there is one.

    The evidence covers this host only.
    """
    if not is_here(host):
        return f"the database is on {host}, and so is the evidence of its backups"
    try:
        verified = json.loads(secure_path.text(path)).get("verified")
    except FileNotFoundError:
        return f"{path} does not exist: this host makes no backups"
    except (OSError, ValueError, AttributeError) as error:
        return f"cannot read {path}: {error}"
    try:
        when = datetime.datetime.fromisoformat(verified["when"])
        age_h = ((now or datetime.datetime.now(datetime.UTC)) - when).total_seconds() / 3600
    except (KeyError, TypeError, ValueError):
        return "no restore test has succeeded yet"
    if age_h < -FRESH_H:
        return f"the last restore test is dated {-age_h:.0f} h in the future: a clock is or was wrong"
    return f"the last restore test was {age_h:.0f} h ago" if age_h > FRESH_H else ""
