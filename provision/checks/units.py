"""Services and timers that the roles place: running, enabled, not failed. Asks systemd, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from provision.checks.finding import Severity
from provision.checks.placed import ask, manifests, role
from provision.checks.registry import Row, check
from provision.host.timers import faults
from provision.plan.schema import Plan

SYSTEM = Path("/etc/systemd/system")
LAST_LINES, LAST_CHARACTERS = 5, 600
UNITS = (
    "provision-*",
    "postgresql*",
    "pgbouncer*",
    "prometheus*",
    "pgbackrest*",
    "patroni*",
    "etcd*",
    "haproxy*",
    "keepalived*",
)


@check(
    "service",
    area="services",
    severity=Severity.CRITICAL,
    expected="services run and start at boot",
    why="clients of a stopped service get no answer",
    safe=True,
)
def services(plan: Plan) -> Iterator[Row]:
    """Report the server, and every service that starts at boot, where it is down or disabled."""
    if not plan.pooler_alone:
        yield from _running(plan.server.unit, "is down", enabled=False)
    for unit, text in _placed(".service"):
        if "\n[Install]" in text and "@." not in unit:
            yield from _running(unit, "is down")
    # Patroni starts the server itself, and leaves its own unit disabled.
    for unit in _with_drop_ins() - {plan.server.unit, plan.server.own_unit}:
        yield from _running(unit, "is down")


@check(
    "timers",
    area="services",
    expected="every timer runs and starts at boot",
    why="backups, restore tests, watches or maintenance stop without an error",
    safe=True,
)
def timers(plan: Plan) -> Iterator[Row]:
    """Report timers with a schedule that are stopped or disabled."""
    del plan
    for unit, text in _placed(".timer"):
        if _scheduled(text):
            yield from _running(unit, "is stopped")


@check(
    "timer-elapse",
    area="services",
    expected="every timer has a next elapse time",
    why="systemd reports the timer as active but never starts its job again",
)
def elapse(plan: Plan) -> Iterator[Row]:
    """Report active timers that will not elapse: a schedule that never comes, or a unit file that cannot be loaded."""
    placed = {Path(row["path"]).name: role(name) for name, rows in manifests().items() for row in rows}
    for unit, said in faults([unit for unit, text in _placed(".timer") if _scheduled(text)]).items():
        yield f"{unit} {said}", plan.site(placed.get(unit, ""))


@check(
    "units-failed",
    area="services",
    expected="no unit has failed",
    why="a failed unit is an unanswered alarm",
)
def failed(plan: Plan) -> Iterator[Row]:
    """Report failed units with the last lines of their journal."""
    del plan
    for line in ask("systemctl", "list-units", "--failed", "--plain", "--no-legend", *UNITS).splitlines():
        unit = line.split()[0]
        journal = ask("journalctl", "-u", unit, "-n", "20", "-o", "cat", "--no-pager").splitlines()
        texts = [text.strip() for text in journal if "systemd" not in text and "Deactivated" not in text]
        yield f"{unit} failed: {_last(unit, texts)}", f"systemctl reset-failed {unit} && systemctl restart {unit}"


def _last(unit: str, texts: list[str]) -> str:
    """Return the last lines that the unit itself printed, within LAST_CHARACTERS."""
    own = [text for text in texts if text and not text.startswith((unit, "Failed to start"))]
    return "; ".join(own[-LAST_LINES:])[-LAST_CHARACTERS:]


def _scheduled(timer: str) -> bool:
    return "\nOnCalendar=" in timer or "\nOnUnitActiveSec=" in timer


def _placed(suffix: str) -> Iterator[tuple[str, str]]:
    for rows in manifests().values():
        for row in rows:
            path = Path(row["path"])
            if path.suffix == suffix and path.parent == SYSTEM and path.exists():
                yield path.name, path.read_text()


def _with_drop_ins() -> set[str]:
    """Name the packaged services for which the roles placed a drop-in."""
    paths = [Path(row["path"]) for rows in manifests().values() for row in rows]
    names = {path.parent.name.removesuffix(".d") for path in paths if path.parent.parent == SYSTEM}
    return {name for name in names if name.endswith(".service")}


def _running(unit: str, trouble: str, *, enabled: bool = True) -> Iterator[Row]:
    active = ask("systemctl", "is-active", unit).strip()
    at_boot = ask("systemctl", "is-enabled", unit).strip()
    if at_boot.startswith("masked"):
        yield f"{unit} is masked", f"systemctl unmask {unit} && systemctl enable --now {unit}"
    elif active not in ("active", "activating", "reloading"):
        # After too many starts systemd refuses another one until the failure is reset.
        reset = f"systemctl reset-failed {unit} && " if active == "failed" else ""
        yield f"{unit} {trouble} ({active})", f"{reset}systemctl {'enable --now' if enabled else 'start'} {unit}"
    elif enabled and not at_boot.startswith("enabled"):
        yield f"{unit} does not start at boot ({at_boot})", f"systemctl enable {unit}"
