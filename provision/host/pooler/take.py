"""Let a running pooler take what is on disk and it has not read yet, and tell what waits for a restart. Does IO.

Asked of the pooler and of the files on every run, not of what this run changed: a run may have been killed between
the two. A reload is enough for nearly everything, certificates included; clients notice nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from provision.errors import HostError
from provision.host.pooler import configuration, console

CONFIGURATION = Path("/etc/pgbouncer/pgbouncer.ini")
MANIFESTS = (Path("/etc/provision/files.d/pgbouncer.json"),)
UNIT_FILE = Path("/etc/systemd/system/pgbouncer.service.d/50-provision.conf")
RELOADED = Path("/run/provision/pooler-reloaded")


@dataclass(frozen=True)
class Taken:
    """What was done, and what a restart would do."""

    reloaded: bool
    resumed: bool
    pending: tuple[str, ...]


def take() -> Taken:
    """Reload where files are newer than what the pooler has read, and end a pause that a killed run left behind."""
    place = console.present()
    if place is None:
        raise HostError(
            "no pooler runs on this host",
            where=console.UNIT,
            run=f"journalctl -u {console.UNIT} -n 50 says why",
        )
    values = configuration.settings(CONFIGURATION)
    files = [CONFIGURATION, *_placed(), *(Path(value) for key, value in values.items() if key.endswith("_file"))]
    newest = max(path.stat().st_mtime_ns for path in files if path.exists())
    started = Path(values["pidfile"]).stat().st_mtime_ns
    known = max(started, RELOADED.stat().st_mtime_ns if RELOADED.exists() else 0)
    resumed = console.resume()
    reloaded = newest > known
    if reloaded:
        console.reload()
        RELOADED.parent.mkdir(exist_ok=True)
        RELOADED.touch()
    return Taken(reloaded, resumed, tuple(_pending(place, values, started)))


def _placed() -> list[Path]:
    found = [json.loads(path.read_text())["files"] for path in MANIFESTS if path.exists()]
    return [Path(row["path"]) for rows in found for row in rows]


def _pending(place: console.Place, values: dict[str, str], started: int) -> list[str]:
    """Name the settings that PgBouncer takes at its start alone and whose wanted value is not the running one."""
    with place.console() as session:
        running = console.settings(session)
    found = [
        f"{key} ({running[key][0]} -> {value})"
        for key, value in values.items()
        if key in running and not running[key][1] and running[key][0] != value
    ]
    return found + (["the unit's limits"] if UNIT_FILE.exists() and UNIT_FILE.stat().st_mtime_ns > started else [])
