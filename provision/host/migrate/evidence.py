"""Is there a backup to come back to? Reads what the last restore drill of this host left behind; changes nothing.

Only a backup that a drill has restored counts (`provision backup status` writes which, and when).
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

BACKUP = Path("/var/lib/provision/backup.json")
FRESH_H = 24.0
"""Hours for which a drill vouches: what came later is in the archived WAL."""

LOCAL = ("", "localhost", "127.0.0.1", "::1")


def is_here(host: str) -> bool:
    """Say whether libpq's `host` (a name, an address, or the directory of a socket) is this machine."""
    return host.startswith("/") or host in LOCAL


def doubt(host: str, path: Path = BACKUP, now: datetime.datetime | None = None) -> str:
    """Say why no fresh, proved backup of the database on `host` is known here; empty when there is one.

    The evidence is about this host alone.
    """
    if not is_here(host):
        return f"the database is on {host}, and the evidence of its backups is there too"
    try:
        verified = json.loads(path.read_text()).get("verified")
    except FileNotFoundError:
        return f"there is no {path}: this host makes no backups"
    except (OSError, ValueError, AttributeError) as error:
        return f"{path} cannot be read: {error}"
    try:
        when = datetime.datetime.fromisoformat(verified["when"])
        age_h = ((now or datetime.datetime.now(datetime.UTC)) - when).total_seconds() / 3600
    except (KeyError, TypeError, ValueError):
        return "no drill has restored a backup yet"
    if age_h < -FRESH_H:
        return f"the last backup that a drill restored is dated {-age_h:.0f} h in the future: a clock is or was wrong"
    return f"the last backup that a drill restored is {age_h:.0f} h old" if age_h > FRESH_H else ""
