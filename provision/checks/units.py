"""Services and timers of ours: running, enabled, not failed. Asks systemd, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from provision.checks.finding import Severity
from provision.checks.place import HostCheck, Place, Row, ask

SYSTEM = Path("/etc/systemd/system")
OURS = ("provision-*", "postgresql*", "pgbouncer*", "prometheus*", "pgbackrest*")


def failed(place: Place) -> Iterator[Row]:
    """Name units that failed, with the last words of their journal."""
    del place
    for line in ask("systemctl", "list-units", "--failed", "--plain", "--no-legend", *OURS).splitlines():
        unit = line.split()[0]
        told = ask("journalctl", "-u", unit, "-n", "8", "-o", "cat", "--no-pager").splitlines()
        words = [text.strip() for text in told if "systemd" not in text and "Deactivated" not in text and text.strip()]
        last = next((text for text in reversed(words) if not text.startswith((unit, "Failed to start"))), "")
        yield f"{unit} failed: {last[:300]}", f"systemctl restart {unit}"


def timers(place: Place) -> Iterator[Row]:
    """Look whether every timer that has a schedule waits for its next moment."""
    for unit, text in _units(place, ".timer"):
        if "\nOnCalendar=" in text or "\nOnUnitActiveSec=" in text:
            yield from _running(unit, "waits for no moment")


def services(place: Place) -> Iterator[Row]:
    """Look whether the server, and every service of ours that a boot starts, runs."""
    yield from _running(place.unit, "is down", enabled=False)
    for unit, text in _units(place, ".service"):
        if "\n[Install]" in text and "@." not in unit:
            yield from _running(unit, "is down")
    for unit in _packaged(place):
        yield from _running(unit, "is down")


def _units(place: Place, suffix: str) -> Iterator[tuple[str, str]]:
    for rows in place.manifests().values():
        for row in rows:
            path = Path(row["path"])
            if path.suffix == suffix and path.parent == SYSTEM and path.exists():
                yield path.name, path.read_text()


def _packaged(place: Place) -> list[str]:
    """Name the services of packages that we wrote a drop-in for: they must run as soon as it is on the host."""
    paths = [Path(row["path"]) for rows in place.manifests().values() for row in rows]
    names = {path.parent.name.removesuffix(".d") for path in paths if path.parent.parent == SYSTEM}
    return sorted(name for name in names if name.endswith(".service"))


def _running(unit: str, trouble: str, *, enabled: bool = True) -> Iterator[Row]:
    active = ask("systemctl", "is-active", unit).strip()
    at_boot = ask("systemctl", "is-enabled", unit).strip()
    if at_boot.startswith("masked"):
        yield f"{unit} is masked", f"systemctl unmask {unit} && systemctl enable --now {unit}"
    elif active not in ("active", "activating", "reloading"):
        yield f"{unit} {trouble} ({active})", f"systemctl {'enable --now' if enabled else 'start'} {unit}"
    elif enabled and not at_boot.startswith("enabled"):
        yield f"{unit} does not start at boot ({at_boot})", f"systemctl enable {unit}"


CHECKS = (
    HostCheck("service", "services", Severity.CRITICAL, "services that run and start at boot",
              "what they serve is not served", services, safe=True),
    HostCheck("timers", "services", Severity.WARNING, "timers that wait for their next moment",
              "backups, drills, watches or house-keeping stop without a sound", timers, safe=True),
    HostCheck("units-failed", "services", Severity.WARNING, "units that ended well",
              "a failed unit is an alarm that nobody has answered", failed),
)  # fmt: skip
