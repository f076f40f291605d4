"""Bring HAProxy and keepalived up to their files: start them, or reload what is older than its files. Does IO, as root.

A reload of HAProxy keeps sessions: the old process serves them until they end. A reload of keepalived keeps the address
where it is. The role removes the files of what the plan no longer has, and a unit without its file is stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from provision import system
from provision.plan.schema import Plan

HAPROXY, KEEPALIVED = "haproxy.service", "keepalived.service"
CONFIGURATION = Path("/etc/haproxy/haproxy.cfg")
MOVING = Path("/etc/keepalived")
ADDRESS = MOVING / "keepalived.conf"
RELOADED = Path("/run/provision")


def apply(plan: Plan, *, check: bool = False) -> list[str]:
    """Return the actions taken, such as `haproxy reloaded`; with `check`, those due. Raises HostError."""
    found = list(_due(plan))
    for unit, verbs, _ in found if not check else ():
        for verb in verbs:
            system.run("systemctl", *verb.split(), unit)
        mark = _mark(unit)
        mark.parent.mkdir(mode=0o755, exist_ok=True)
        mark.touch()
    return [f"{unit.removesuffix('.service')} {said}" for unit, _, said in found]


Due = tuple[str, tuple[str, ...], str]
"""A unit, what systemctl does with it, and how it is reported."""


def _due(plan: Plan) -> Iterator[Due]:
    member = plan.tls.certificate("member") if plan.balancer.enabled else None
    files = [CONFIGURATION, Path(member.certificate), Path(member.key), Path(plan.tls.ca)] if member else []
    yield from _of(HAPROXY, CONFIGURATION, files)
    yield from _of(KEEPALIVED, ADDRESS, [ADDRESS, MOVING / "balancer-check"] if plan.balancer.address else [])


def _of(unit: str, own: Path, files: Sequence[Path]) -> Iterator[Due]:
    """Yield what is due of a unit: with `files`, it runs and has read them; without, it is stopped if `own` is gone."""
    state = _state(unit)
    enabled, active = state["UnitFileState"] == "enabled", state["ActiveState"] == "active"
    if not files:
        if enabled and not own.exists():
            yield unit, ("disable --now",), "stopped"
        return
    mark = _mark(unit)
    newest = max((path.stat().st_mtime_ns for path in files if path.exists()), default=0)
    verbs = () if enabled else ("enable",)
    if not active:
        yield unit, (*verbs, "start"), "started"
    elif not mark.exists() or mark.stat().st_mtime_ns < newest:
        yield unit, (*verbs, "reload"), "reloaded"
    elif verbs:
        yield unit, verbs, "enabled"


def _state(unit: str) -> dict[str, str]:
    shown = system.run("systemctl", "show", unit, "-p", "ActiveState,UnitFileState")
    return dict(line.partition("=")[::2] for line in shown.stdout.splitlines())


def _mark(unit: str) -> Path:
    """Return the file that is touched at each start and reload of a unit."""
    return RELOADED / f"{unit.removesuffix('.service')}-reloaded"
