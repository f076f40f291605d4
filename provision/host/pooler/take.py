"""Reload a running pooler if its files changed, and report pending restarts. Does IO.

Compares the pooler with its files on every run, regardless of what this run changed: an earlier run may have been
killed before its reload. A reload applies nearly every setting and certificate without disturbing clients.
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
    """The actions taken, and the settings with a pending restart."""

    reloaded: bool
    resumed: bool
    pending: tuple[str, ...]


def take() -> Taken:
    """Reload if files are newer than the last reload, and resume after a pause that a killed run left.

    Raises HostError without a running pooler.
    """
    place = console.present()
    if place is None:
        raise HostError(
            "no pooler runs on this host",
            where=console.UNIT,
            run=f"journalctl -u {console.UNIT} -n 50",
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
    """List settings whose configured value differs from the running one and needs a restart."""
    with place.console() as session:
        running = console.settings(session)
    found = [
        f"{key} ({running[key][0]} -> {value})"
        for key, value in values.items()
        if key in running and not running[key][1] and running[key][0] != value
    ]
    return found + (["the unit's limits"] if UNIT_FILE.exists() and UNIT_FILE.stat().st_mtime_ns > started else [])
